"""Small tokenizers for GGUF files, as the converter writes Gemma's and GPT-2's."""

from __future__ import annotations

import gguf

TEXTS = (
    "hello world",
    "  hello  world",
    "the\n\nthe",
    "é 日本 🚀",
    "<bos>hello<eos>",
    "<start_of_turn>hello\n",
    "a   b",
    "",
    " ",
    "hello12 it's",
    "<|endoftext|>hello",
    "<b>hello <mask>",
)
_CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>"]
_BYTES = [f"<0x{index:02X}>" for index in range(256)]
# The converter writes a Gemma's tokens of blanks with real spaces.
_OWN = ["\n", "\n\n", "  ", "   ", "<b>"]
_PIECES = ["he", "ll", "hell", "hello", "▁h", "▁hello", "▁w", "or", "▁wor", "ld", "▁world", "th"]
_MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "1 2"]


def gemma(writer: gguf.GGUFWriter, prefix: bool | None = False) -> None:
    """SentencePiece with bytes to fall back on, and no merges."""
    kinds = gguf.TokenType
    groups = [
        (_CONTROL, kinds.CONTROL),
        (_BYTES, kinds.BYTE),
        (_OWN, kinds.USER_DEFINED),
        ([*_PIECES, *"▁helowrdtabc"], kinds.NORMAL),
    ]
    tokens = [token for group, _ in groups for token in group]
    types = [kind for group, kind in groups for _ in group]
    types[_CONTROL.index("<unk>")] = kinds.UNKNOWN
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(len(tokens))])
    writer.add_token_types(types)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    if prefix is not None:
        writer.add_add_space_prefix(prefix)


def gpt2(writer: gguf.GGUFWriter, split: str = "gpt-2") -> None:
    """Byte-level pieces and their merges."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = [*bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in _MERGES)]
    kinds = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([*tokens, "<|endoftext|>"])
    writer.add_token_types(kinds)
    writer.add_token_merges(_MERGES)
    writer.add_bos_token_id(len(tokens))
    writer.add_eos_token_id(len(tokens))


def other(writer: gguf.GGUFWriter) -> None:
    """A kind that no decoder here has."""
    writer.add_tokenizer_model("t5")
    writer.add_token_list(["a", "b"])
    writer.add_token_scores([0.0, 0.0])
