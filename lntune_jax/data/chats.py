"""Chats in the tokenizer's template, and which of the characters an assistant wrote.

A template is a program that came with the model. Some mark the answers themselves
(`{% generation %}`). Others write an earlier answer anew once a message follows it: Qwen3's drops
the thoughts of all turns but the last. So each answer is looked for in the text of the whole chat.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError, LNTuningError
from ..messages import list_names, warn
from .documents import Documents

Message = dict[str, Any]

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
# What stands in an answer's place, to see where the template puts it.
_STAND_IN = "lntune answer"


class Chat(NamedTuple):
    """A chat as token ids, and for each whether the loss counts it."""

    tokens: list[int]
    counted: np.ndarray


class _TemplateError(LNTuningError):
    """A template cannot write a chat."""


def encode_chats(tokenizer: Any, documents: Documents) -> list[Chat]:
    """Tokenise chats; what counts is what the assistant says, with the end of its turn.

    The ids are those of `tokenizer.apply_chat_template`. A token counts that holds a character of
    an answer, also where it begins with a blank of the header before it.

    Args:
        tokenizer: From `load_tokenizer`.
        documents: Chats.

    Returns:
        One entry a chat.

    Raises:
        DataError: There is no chat template, or rows that it cannot write, or in which no answer
            is found again; the message names all of them.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{documents.path} holds messages, but the model's tokenizer has no chat template; "
            "give the rows as prompt and completion"
        )
    is_marked = tokenizer.is_fast and _MARKS.search(tokenizer.get_chat_template()) is not None
    added = list(tokenizer.added_tokens_decoder)
    chats, failed, lost, shortened = [], {}, [], []
    for messages, row in zip(documents.values, documents.rows, strict=True):
        try:
            if is_marked:
                chats.append(_encode_marked(tokenizer, messages))
                continue
            whole = render_chat(tokenizer, messages)
            spans = find_answers(tokenizer, messages, whole)
        except _TemplateError as error:
            failed[row] = str(error)
            continue
        if spans[-1] is None:
            lost.append(row)
            continue
        if None in spans:
            shortened.append(row)
            spans = spans[-1:]
        chats.append(_encode_spans(tokenizer, added, whole, [span for span in spans if span]))
    _refuse(documents, failed, lost)
    if shortened:
        warn(
            f"{documents.path}: the chat template writes earlier answers anew, and they are not "
            f"found again in {_rows(shortened)}: the last answer alone counts there",
            UserWarning,
        )
    return chats


def render_chat(tokenizer: Any, messages: Sequence[Message], *, asks: bool = False) -> str:
    """The text of a chat, ending with the words that ask for an answer if `asks`.

    Raises:
        LNTuningError: The template cannot write it; the message is the template's.
    """
    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=asks
        )
    except ImportError as error:
        raise _TemplateError("it needs a package: pip install jinja2") from error
    # A template is a program of its own: whatever it raises is about this chat.
    except Exception as error:
        text = str(error).strip()
        raise _TemplateError(text.splitlines()[0][:200] if text else repr(error)) from error


def find_answers(
    tokenizer: Any, messages: Sequence[Message], whole: str
) -> list[tuple[int, int] | None]:
    """Where each answer stands in the text of a chat.

    An answer reaches from behind the words that ask for one (`add_generation_prompt`) to where
    the template ends the message, its end-of-turn token included.

    Args:
        tokenizer: Whose template it is.
        messages: The chat.
        whole: Its text, from `render_chat`.

    Returns:
        First character and the one behind the last, for each message of the assistant; `None`
        for one that is not found.
    """
    numbers = [number for number, each in enumerate(messages) if each["role"] == "assistant"]
    return [_find_answer(tokenizer, messages, number, whole) for number in numbers]


def _find_answer(
    tokenizer: Any, messages: Sequence[Message], number: int, whole: str
) -> tuple[int, int] | None:
    before = _try_render(tokenizer, messages[:number], asks=True) if number else None
    until = _try_render(tokenizer, messages[: number + 1])
    if before and until and whole.startswith(until) and until.startswith(before):
        return len(before), len(until)
    found = _find_content(tokenizer, messages, number, whole)
    if found is None:
        return None
    start, end = found
    # The header belongs to the prompt, and what a template puts between it and the content
    # (`<think>`) to the answer.
    base = _try_render(tokenizer, messages[:number]) if number else None
    if base is not None and before is not None and whole.startswith(base):
        start = min(start, max(len(base), _shared(before, whole)))
    # Where the message would be the last, what follows the content is its end and nothing else.
    alone = _frame(tokenizer, messages[: number + 1], number)
    return start, end + (0 if alone is None else _shared(alone[1], whole[end:]))


def _find_content(
    tokenizer: Any, messages: Sequence[Message], number: int, whole: str
) -> tuple[int, int] | None:
    frame = _frame(tokenizer, messages, number)
    if frame is None:
        return None
    before, after = frame
    fits = len(before) + len(after) <= len(whole)
    if not (fits and whole.startswith(before) and whole.endswith(after)):
        return None
    return len(before), len(whole) - len(after)


def _frame(tokenizer: Any, messages: Sequence[Message], number: int) -> tuple[str, str] | None:
    """What the template writes before and after the content of one message."""
    content = messages[number]["content"]
    # Thoughts stay, so that the template does with them what it did.
    _, mark, _ = content.rpartition("</think>")
    thoughts = content[: content.rindex(mark) + len(mark)] if mark else ""
    stand_in = _STAND_IN
    while any(stand_in in each["content"] for each in messages):
        stand_in += "0"
    changed = [*messages]
    changed[number] = messages[number] | {"content": thoughts + stand_in}
    text = _try_render(tokenizer, changed)
    if text is None or text.count(stand_in) != 1:
        return None
    before, _, after = text.partition(stand_in)
    return before, after


def _encode_marked(tokenizer: Any, messages: list[Message]) -> Chat:
    """As the template's own marks say."""
    render_chat(tokenizer, messages)  # What it refuses is refused in our words.
    found = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return Chat(list(found["input_ids"]), np.asarray(found["assistant_masks"], bool))


def _encode_spans(
    tokenizer: Any, added: Sequence[int], whole: str, spans: Sequence[tuple[int, int]]
) -> Chat:
    if not tokenizer.is_fast:
        return _encode_slowly(tokenizer, whole, spans)
    found = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    tokens = list(found["input_ids"])
    starts, ends = np.asarray(found["offset_mapping"], np.int64).reshape(-1, 2).T
    # A tokenizer that leaves blanks out of its offsets says of a token of blanks where it ends.
    behind = np.concatenate([[0], np.maximum.accumulate(ends)])[:-1]
    starts = np.where(starts == ends, np.minimum(starts, behind), starts)
    is_added = np.isin(tokens, added)
    counted = np.zeros(len(tokens), bool)
    for start, end in spans:
        overlaps = (starts < end) & (ends > start)
        # A token of a header that swallows the blanks behind it is still the header's.
        counted |= overlaps & ~(is_added & (starts < start))
    return Chat(tokens, counted)


def _encode_slowly(tokenizer: Any, whole: str, spans: Sequence[tuple[int, int]]) -> Chat:
    """Without offsets: up to where the ids of a beginning are those of the whole text."""

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    tokens = encode(whole)
    counted = np.zeros(len(tokens), bool)
    for span in spans:
        start, end = (_shared(encode(whole[:place]), tokens) for place in span)
        counted[start:end] = True
    return Chat(tokens, counted)


def _refuse(documents: Documents, failed: dict[int, str], lost: list[int]) -> None:
    told = []
    if failed:
        # Rows that fail alike are named together.
        for reason in dict.fromkeys(failed.values()):
            rows = [row for row, own in failed.items() if own == reason]
            told.append(f"the chat template cannot write {_rows(rows)}: {reason}")
    if lost:
        told.append(
            f"the chat template changes the last answer of {_rows(lost)}, so that it is not found "
            "again; give the rows as prompt and completion"
        )
    if told:
        raise DataError(f"{documents.path}: {'; '.join(told)}")


def _rows(rows: Sequence[int]) -> str:
    return f"row{'s' * (len(rows) > 1)} {list_names([str(row) for row in rows], str, most=20)}"


def _try_render(tokenizer: Any, messages: Sequence[Message], *, asks: bool = False) -> str | None:
    """`None` where the template refuses a part of a chat, as those may that count turns."""
    try:
        return render_chat(tokenizer, messages, asks=asks)
    except _TemplateError:
        return None


def _shared(left: Any, right: Any) -> int:
    """How long the common beginning of two texts or two lists is."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(left), len(right)))
