"""Chat templates of the usual kinds, and a small byte-level tokenizer to write them with."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

SIMPLE = (
    "{% for each in messages %}{{ each['role'] }}: {{ each['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CHATML = (
    "{% for each in messages %}<|start|>{{ each['role'] }}\n{{ each['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
# Llama 3's: a first token of its own, blanks taken off the contents.
LLAMA = (
    "{{ bos_token }}{% for each in messages %}<|start|>{{ each['role'] }}\n\n"
    "{{ each['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n\n{% endif %}"
)
# Qwen3's: thoughts are kept, or written empty, behind the user's last message alone.
QWEN = """\
{%- set last = namespace(user=0) %}
{%- for each in messages %}{% if each['role'] == 'user' %}{% set last.user = loop.index0 %}\
{% endif %}{% endfor %}
{%- for each in messages %}
{%- if each['role'] != 'assistant' %}{{ '<|start|>' + each['role'] + '\n' + each['content'] + \
'<|end|>\n' }}
{%- else %}
{%- set thoughts = '' %}{% set content = each['content'] %}
{%- if '</think>' in content %}
{%- set thoughts = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{{- '<|start|>assistant\n' }}
{%- if loop.index0 > last.user %}{{ '<think>\n' + thoughts + '\n</think>\n\n' }}{% endif %}
{{- content + '<|end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"""
# DeepSeek-R1's: asks for thoughts, and writes none.
THINKING = (
    "{% for each in messages %}{% if each['role'] == 'user' %}<|start|>{{ each['content'] }}"
    "{% else %}<|turn|>{{ each['content'].split('</think>')[-1] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|turn|><think>\n{% endif %}"
)
# Says in each header how long the chat is.
COUNTING = (
    "{% for each in messages %}{{ loop.index }}/{{ messages | length }} {{ each['role'] }}: "
    "{{ each['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}{{ messages | length + 1 }}/{{ messages | length + 1 }} "
    "assistant: {% endif %}"
)
MARKED = (
    "{% for each in messages %}<|start|>{{ each['role'] }}\n"
    "{% if each['role'] == 'assistant' %}{% generation %}{{ each['content'] }}<|end|>"
    "{% endgeneration %}{% else %}{{ each['content'] }}<|end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)

_SPECIAL = ("<pad>", "<bos>", "<eos>", "<|start|>", "<|end|>", "<|turn|>")
_MERGES = (("Ċ", "Ċ"), ("Ġ", "y"), ("Ġy", "e"), ("Ġye", "s"), ("h", "i"), (".", "Ċ"))


def make_tokenizer(template: str | None = None, *, begins: bool = False, ends: bool = False) -> Any:
    """A tokenizer of bytes and a few merges.

    Args:
        template: Its chat template.
        begins: Whether it puts `<bos>` before a text.
        ends: Whether it puts `<eos>` behind one.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*_SPECIAL, *alphabet, *("".join(pair) for pair in _MERGES)]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    backend = Tokenizer(BPE(vocabulary, list(_MERGES)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if begins or ends:
        single = [*["<bos>"] * begins, "$A", *["<eos>"] * ends]
        backend.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<bos>", 1), ("<eos>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<|start|>", "<|end|>", "<|turn|>"],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def turns(*contents: str, first: str = "user") -> list[dict[str, str]]:
    """Messages of a user and an assistant in turn."""
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [
        {"role": roles[number % 2], "content": content} for number, content in enumerate(contents)
    ]
