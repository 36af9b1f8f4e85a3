"""The tokenizer in a GGUF file, built piece by piece with the package `tokenizers`.

A file holds the vocabulary, its merges or scores, and the kinds of the tokens. How text is split
before that, and how pieces become text again, it says by a name alone. The answers below are those
of transformers' own tokenizers of these models; the tests compare them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lntune_jax.errors import ModelError
from lntune_jax.messages import need_package
from lntune_jax.storage.directories import refuse_url

from .gguf import GgufFile

_PREFIX = "tokenizer.ggml."

_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}

# A vocabulary of SentencePiece, and one of byte-level pieces.
_KINDS = ("llama", "gpt2")

_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's numbers of kinds of tokens

_SPACE = "\u2581"  # what SentencePiece writes for a space

_DIGITS_APART = "digits apart"

# The patterns of the models' own tokenizers: words, then numbers, then all else.
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
)

_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

_QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_REST}"
)

_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
)

_GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
)

# How text is split before merging, by llama.cpp's names; None is GPT-2's way.
_SPLITS: dict[str, str | None] = {
    **dict.fromkeys(("default", "gpt-2", "gpt2")),
    "smollm": _DIGITS_APART,
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1"), _LLAMA3),
    **dict.fromkeys(("pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "dbrx", "smaug-bpe"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"), _QWEN2),
    "qwen35": _QWEN35,
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _GPT4O),
}


class _Vocabulary(NamedTuple):
    tokens: list[str]
    scores: Sequence[float] | None
    kinds: Sequence[int]
    merges: Sequence[str] | None


def tokenizer_from_gguf(path: str | os.PathLike[str]) -> Any:
    """Build the tokenizer that a GGUF file describes.

    Args:
        path: the file.

    Returns:
        A fast transformers tokenizer, with the file's special tokens and chat template.

    Raises:
        ModelError: the file is damaged, or its tokenizer is of a kind that is not known.

    Example:
        >>> from lntune_jax.models import tokenizer_from_gguf
        >>> try:
        ...     tokenizer_from_gguf("no-such-file.gguf")
        ... except ValueError as error:
        ...     print(error)
        no-such-file.gguf: no such file
    """
    need_package("transformers", "hf", "a tokenizer", ModelError)
    from transformers import PreTrainedTokenizerFast

    refuse_url(path, error=ModelError)
    path = Path(path).expanduser()
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    file = GgufFile(path)
    kind = file.field(_PREFIX + "model")
    if kind not in _KINDS:
        raise ModelError(f"{path}: field {_PREFIX}model is {kind!r}; supported: {_KINDS}")
    split = file.field(_PREFIX + "pre", "default")
    if not isinstance(split, str) or split not in _SPLITS:
        raise ModelError(f"{path}: field {_PREFIX}pre is {split!r}, a way to split text not known")
    usual = file.kind.space_prefix
    prefix = file.field(_PREFIX + "add_space_prefix", usual)
    if kind == "llama" and prefix != usual:
        raise ModelError(f"{path}: field {_PREFIX}add_space_prefix is {prefix}; supported: {usual}")
    try:
        vocabulary = _Vocabulary(
            tokens=list(file.field(_PREFIX + "tokens")),
            scores=file.field(_PREFIX + "scores"),
            kinds=file.field(_PREFIX + "token_type") or (),
            merges=file.field(_PREFIX + "merges"),
        )
        if kind == "llama":
            make = _make_llama if usual else _make_gemma
            backend = (_make_doubled if file.kind.doubled_space else make)(vocabulary)
        else:
            backend = _make_byte_level(vocabulary)
            backend.pre_tokenizer = _make_splitter(_SPLITS[split])
        _add_tokens(backend, vocabulary, is_byte_level=kind == "gpt2")
        special = {name: file.field(_PREFIX + key) for name, key in _SPECIAL.items()}
        named = {n: vocabulary.tokens[i] for n, i in special.items() if i is not None}
    # The package's own errors are plain exceptions.
    except Exception as error:
        raise ModelError(f"{path}: its tokenizer cannot be built ({error})") from error
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=file.field("tokenizer.chat_template"),
        add_bos_token=file.field(_PREFIX + "add_bos_token", kind == "llama"),
        add_eos_token=file.field(_PREFIX + "add_eos_token", False),
        **named,
    )


def _make_doubled(vocabulary: _Vocabulary) -> Any:
    """As a Llama's, but the space also stands before a text that begins with one."""
    from tokenizers import normalizers

    made = _make_llama(vocabulary)
    before, inside = normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)
    made.normalizer = normalizers.Sequence([before, inside])
    made.pre_tokenizer = None
    return made


def _make_llama(vocabulary: _Vocabulary) -> Any:
    """SentencePiece's pieces, with a space before the text that is taken away in decoding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    ids = _number(vocabulary.tokens)
    merges = _list_merges(vocabulary, ids, vocabulary.scores)
    made = Tokenizer(models.BPE(vocab=ids, merges=merges, fuse_unk=True, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="first", split=False)
    spaces, octets = decoders.Replace(_SPACE, " "), decoders.ByteFallback()
    made.decoder = decoders.Sequence([spaces, octets, decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return made


def _make_gemma(vocabulary: _Vocabulary) -> Any:
    """SentencePiece's pieces, with spaces as they stand in the text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    # The converter writes tokens of several blanks with real spaces.
    tokens = [
        _SPACE * len(token) if " " in token and not token.strip() else token
        for token in vocabulary.tokens
    ]
    ids = _number(tokens)
    # Merges go by the order of the tokens; a Gemma's scores do not follow it.
    merges = _list_merges(vocabulary, ids, [-float(index) for index in range(len(tokens))])
    made = Tokenizer(
        models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    made.normalizer = normalizers.Replace(" ", _SPACE)
    made.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous", invert=False)
    spaces, octets = decoders.Replace(_SPACE, " "), decoders.ByteFallback()
    made.decoder = decoders.Sequence([spaces, octets, decoders.Fuse()])
    return made


def _make_byte_level(vocabulary: _Vocabulary) -> Any:
    """GPT-2's pieces, spelled in an alphabet of 256 letters, one a byte."""
    from tokenizers import Tokenizer, decoders, models

    ids = _number([_spell(token) for token in vocabulary.tokens])
    merges = _list_merges(vocabulary, ids, vocabulary.scores)
    made = Tokenizer(models.BPE(vocab=ids, merges=merges, fuse_unk=False))
    made.decoder = decoders.ByteLevel()
    return made


def _spell(token: str) -> str:
    """A token in the alphabet of bytes: as it is where it is spelled so already."""
    from tokenizers import pre_tokenizers

    if set(token) <= set(pre_tokenizers.ByteLevel.alphabet()):
        return token
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return "".join(piece for piece, _ in whole.pre_tokenize_str(token))


def _make_splitter(split: str | None) -> Any:
    from tokenizers import Regex, pre_tokenizers

    if split is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split == _DIGITS_APART:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    first = pre_tokenizers.Split(Regex(split), behavior="isolated")
    octets = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([first, octets])


def _number(tokens: Sequence[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens)}


def _list_merges(
    vocabulary: _Vocabulary, ids: Mapping[str, int], scores: Sequence[float] | None
) -> list[tuple[str, str]]:
    """The merges in the file, or every way to make a token of two, the best tokens first."""
    if vocabulary.merges is not None:
        pairs = [merge.split(" ") for merge in vocabulary.merges]
        return [(first, second) for first, second in pairs]
    if scores is None:
        raise ValueError("it has neither merges nor scores")
    found = []
    for token, index in ids.items():
        ways = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(a, b) for a, b in ways if a in ids and b in ids]
        known.sort(key=lambda way: (ids[way[0]], ids[way[1]]))
        found += [(scores[index], len(a), len(b), a, b) for a, b in known]
    found.sort(key=lambda way: way[:3], reverse=True)
    return [(a, b) for *_, a, b in found]


def _add_tokens(backend: Any, vocabulary: _Vocabulary, *, is_byte_level: bool) -> None:
    """Keep whole what the file marks: control tokens, and those that its maker added."""
    from tokenizers import AddedToken

    pairs = list(zip(vocabulary.tokens, vocabulary.kinds, strict=False))
    control = [token for token, kind in pairs if kind == _CONTROL]
    if is_byte_level:
        # Marked by mistake where it is spelled otherwise: it would be one token more.
        control = [token for token in control if _spell(token) == token]
    own = [t for t, kind in pairs if kind == _USER_DEFINED and backend.token_to_id(t) is not None]
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    backend.add_tokens([AddedToken(token, normalized=False) for token in own])
