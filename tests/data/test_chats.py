"""What of a chat counts, in templates of the usual kinds: compared with what it decodes to."""

import warnings
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizer

from lntune_jax.data.chats import encode_chats
from lntune_jax.data.documents import Documents
from lntune_jax.errors import DataError
from tests.support.chats import (
    CHATML,
    COUNTING,
    LLAMA,
    MARKED,
    QWEN,
    SIMPLE,
    THINKING,
    make_tokenizer,
    turns,
)

TEMPLATES = {
    "simple": SIMPLE,
    "chatml": CHATML,
    "llama": LLAMA,
    "qwen": QWEN,
    "thinking": THINKING,
    "counting": COUNTING,
    "marked": MARKED,
}
THOUGHT = "<think>\nhm\n</think>\n\n"


def documents_of(*chats):
    return Documents(Path("chats.jsonl"), "messages", chats, tuple(range(1, len(chats) + 1)))


def counted(template, messages):
    """The runs of counted tokens, decoded; checks the ids on the way."""
    tokenizer = make_tokenizer(template)
    ((tokens, mask),) = encode_chats(tokenizer, documents_of(messages))
    assert tokens == tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
    assert mask.shape == (len(tokens),)
    runs = groupby(zip(tokens, mask, strict=True), key=lambda pair: bool(pair[1]))
    return [tokenizer.decode([token for token, _ in run]) for is_own, run in runs if is_own]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        # The header's blank is in one token with the answer.
        ("simple", [" yes\n", "no\n"]),
        ("chatml", ["yes<|end|>\n", "no<|end|>\n"]),
        ("llama", ["yes<|end|>", "no<|end|>"]),
        ("qwen", ["yes<|end|>\n", "<think>\n\n</think>\n\nno<|end|>\n"]),
        ("thinking", ["yes<|end|>", "no<|end|>"]),
        ("counting", [" yes<|end|>", "no<|end|>"]),
        ("marked", ["yes<|end|>", "no<|end|>"]),
    ],
)
def test_each_answer_counts_with_its_end(template, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert counted(TEMPLATES[template], turns("hi", "yes", "hi yes", "no")) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("simple", "\nyes\n"),
        # Two newlines are one token, of which one is the header's.
        ("chatml", "\n\nyes<|end|>\n"),
        ("llama", "yes<|end|>"),
        ("qwen", "<think>\n\n</think>\n\n\nyes<|end|>\n"),
        ("thinking", "\nyes<|end|>"),
        ("counting", "\nyes<|end|>"),
        ("marked", "\n\nyes<|end|>"),
    ],
)
def test_an_answer_may_begin_with_a_newline(template, expected):
    (run,) = counted(TEMPLATES[template], turns("hi", "\nyes"))
    assert run == expected


@pytest.mark.parametrize("template", ["chatml", "llama", "qwen", "counting", "marked"])
@pytest.mark.parametrize("answer", ["", "hi", "yes.\n", "é 日本 🚀", "hi <|end|> hi", "user"])
def test_odd_answers(template, answer):
    """Equal to the question, empty, with special tokens in it, of several bytes a letter."""
    runs = counted(TEMPLATES[template], turns("hi", answer, "hi", answer, "user", "yes"))
    assert len(runs) == 3
    for run in runs[:2]:
        assert run.strip().startswith(answer.strip())
        assert run.strip().endswith("<|end|>")


def test_thoughts_count_where_the_template_keeps_them():
    messages = turns("hi", THOUGHT + "yes", "hi", THOUGHT + "no")
    assert counted(QWEN, messages) == ["yes<|end|>\n", THOUGHT + "no<|end|>\n"]
    assert counted(THINKING, messages) == ["\n\nyes<|end|>", "\n\nno<|end|>"]
    assert counted(CHATML, messages) == [f"{THOUGHT}{each}<|end|>\n" for each in ("yes", "no")]


@pytest.mark.parametrize("template", ["chatml", "llama", "counting", "marked"])
def test_a_chat_may_begin_with_the_assistant(template):
    """The header is the template's: nobody asks for it, and it does not count."""
    runs = counted(TEMPLATES[template], turns("yes", "hi", "no", first="assistant"))
    assert [run.strip(" \n") for run in runs] == ["yes<|end|>", "no<|end|>"]


def test_a_header_that_swallows_blanks_does_not_count():
    from tokenizers import AddedToken

    tokenizer = make_tokenizer(
        "{% for each in messages %}<|{{ each['role'] }}|>{{ each['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer.add_tokens([AddedToken(f"<|{each}|>", rstrip=True) for each in ("user", "assistant")])
    ((tokens, mask),) = encode_chats(tokenizer, documents_of(turns("hi", "\n yes")))
    own = [token for token, is_own in zip(tokens, mask, strict=True) if is_own]
    assert tokenizer.decode(own) == "yes<|end|>"


# Writes all but the last answer as a number of letters.
_SHORTENING = (
    "{% for each in messages %}{% if each['role'] == 'assistant' and not loop.last %}"
    "{{ each['content'] | length }}{% else %}{{ each['content'] }}<|end|>{% endif %}{% endfor %}"
)


def test_where_earlier_answers_are_lost_the_last_counts_and_that_is_said_once():
    chats = [turns("hi", "yes", "hi", "no"), turns("hi", "yes"), turns("a", "b", "c", "d")]
    with pytest.warns(UserWarning, match="rows 1, 3: the last answer alone counts") as caught:
        found = encode_chats(make_tokenizer(_SHORTENING), documents_of(*chats))
    assert len(caught) == 1
    assert [int(mask.sum()) for _, mask in found] == [3, 4, 2]


def test_rows_that_cannot_be_done_are_named_together():
    template = "{% if messages | length > 2 %}{{ raise_exception('too long') }}{% endif %}" + CHATML
    template = template.replace(
        "{{ each['content'] }}", "{{ each['content'] | replace('no', '') }}"
    )
    chats = [turns("hi", "yes", "hi", "yes")] * 3 + [turns("hi", "yes")]
    with pytest.raises(DataError, match="cannot write rows 1, 2, 3: too long"):
        encode_chats(make_tokenizer(template), documents_of(*chats))
    silent = "{% for each in messages %}{{ loop.length }}{% endfor %}"
    with pytest.raises(DataError, match="changes the last answer of rows 1, 2, 3, 4"):
        encode_chats(make_tokenizer(silent), documents_of(*chats))


class Words(PreTrainedTokenizer):
    """A tokenizer in Python, which knows no offsets."""

    model_input_names = ("input_ids", "attention_mask")

    def __init__(self, **options):
        self._words = ["<unk>", "hi", "yes", "no", "user", "assistant", "\n", "</s>"]
        super().__init__(unk_token="<unk>", eos_token="</s>", **options)

    @property
    def vocab_size(self):
        return len(self._words)

    def get_vocab(self):
        return {word: number for number, word in enumerate(self._words)}

    def _tokenize(self, text, **_):
        return text.split()

    def _convert_token_to_id(self, token):
        return self._words.index(token) if token in self._words else 0

    def _convert_id_to_token(self, index):
        return self._words[index]


def test_a_tokenizer_without_offsets():
    template = (
        "{% for each in messages %}{{ each['role'] }} {{ each['content'] }} </s> {% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    tokenizer = Words(chat_template=template)
    assert not tokenizer.is_fast
    ((tokens, mask),) = encode_chats(tokenizer, documents_of(turns("hi", "yes", "hi", "no yes")))
    assert tokenizer.convert_ids_to_tokens(np.asarray(tokens)[mask].tolist()) == [
        *("yes", "</s>", "no", "yes", "</s>")
    ]
