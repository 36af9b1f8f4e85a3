"""Text as its tokens come: each piece once, and no half of a character."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# What decoding gives for bytes that are no whole character, or not yet.
_UNFINISHED = "\ufffd"


def stream_text(tokenizer: Any, prompt: Sequence[int], tokens: Iterable[int]) -> Iterator[str]:
    """Give the text of new tokens, piece by piece; the pieces together are the whole.

    Args:
        tokenizer: Of transformers.
        prompt: The tokens before: some tokenizers write a space only between two words.
        tokens: The new ones, of which special ones have no text.

    Returns:
        An iterator over pieces that are not empty. The bytes of a character are held back until
        the last one is there, or there are no more tokens.
    """
    shown, pending, piece = list(prompt), [], ""
    for token in tokens:
        pending.append(token)
        piece = _decode(tokenizer, shown + pending)[len(_decode(tokenizer, shown)) :]
        if piece and not piece.endswith(_UNFINISHED):
            yield piece
            # One piece back is as far as any tokenizer looks.
            shown, pending, piece = pending, [], ""
    if piece:
        yield piece


def _decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
