"""`lntune-jax generate`: texts continued by a language model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.text import Text

from ..data.tables import read_table
from ..errors import ConfigError, DataError
from ..messages import warn
from .console import TrainingProgress, make_console, make_notes, say, short_path
from .described import check_run
from .language_model import LanguageModel, load_language_model
from .options import GenerateSettings
from .output import check_output, drop_stdout
from .text_stream import stream_text


class Continued(NamedTuple):
    """A text with what the model made of it; in .jsonl, one line."""

    prompt: str
    text: str
    tokens: int
    stopped: bool


def run(settings: GenerateSettings) -> None:
    """Continue the texts and print or write them."""
    texts = _texts(settings)
    if settings.output is not None and settings.output.suffix.lower() != ".jsonl":
        raise ConfigError(f"--output {settings.output} must end in .jsonl")
    check_output(settings.output, [settings.data])
    if settings.run is not None and settings.adapter is not None:
        raise ConfigError("give --run or --adapter, one of them: each names an adapter")
    check_run(settings.run)
    adapter = settings.adapter if settings.run is None else settings.run / "adapter"
    language = load_language_model(
        settings.model, adapter, settings.dtype, settings.quantize, settings.revision
    )
    if language.is_for_chats and not settings.chat:
        warn(
            f"{adapter} was trained on chats, and the texts are taken as they are: --chat "
            "puts them into the model's template",
            UserWarning,
        )
    prompts = [language.prompt_tokens(text, settings.chat) for text in texts]
    _check_prompts(prompts)
    if settings.output is None and len(settings.prompt) == 1:
        _print_stream(settings, language, prompts[0])
    else:
        _write_all(settings, language, texts, prompts)


def _texts(settings: GenerateSettings) -> Sequence[str]:
    if (settings.data is None) == (not settings.prompt):
        raise ConfigError("give the texts with --prompt or with --data, one of them")
    if settings.data is not None:
        bad_rows = "skip" if settings.skip_bad_rows else "refuse"
        return read_table(settings.data, settings.text_column, bad_rows=bad_rows).texts
    return settings.prompt


def _check_prompts(prompts: Sequence[list[int]]) -> None:
    for number, prompt in enumerate(prompts, start=1):
        if not prompt:
            raise DataError(
                f"the tokenizer gives no token for text {number}, so that there is nothing to "
                "continue"
            )


def _print_stream(settings: GenerateSettings, language: LanguageModel, prompt: list[int]) -> None:
    from .. import models

    columns = models.stream(
        language.model, language.params, [prompt], **_options(settings, language, 0)
    )
    # Special tokens have no text, the stop token among them.
    for piece in stream_text(language.tokenizer, prompt, (int(column[0]) for column in columns)):
        if not _is_printed(piece):
            return
    _is_printed("\n")


def _is_printed(text: str) -> bool:
    """Print at once; false where the reader has left, and there is nothing more to do."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        drop_stdout()
        return False
    return True


def _write_all(
    settings: GenerateSettings,
    language: LanguageModel,
    texts: Sequence[str],
    prompts: Sequence[list[int]],
) -> None:
    console = make_console()
    count = 0
    with (
        _open(settings.output) as file,
        TrainingProgress(make_notes(), "generating", len(texts)) as progress,
    ):
        found = _continue_all(settings, language, texts, prompts)
        for done, continued in enumerate(found, start=1):
            count += continued.tokens
            line = json.dumps(continued._asdict(), ensure_ascii=False)
            if file is not None:
                file.write(line + "\n")
            elif console.is_terminal:
                whole = Text.assemble((continued.prompt, "bold"), continued.text, "\n")
                console.print(whole, soft_wrap=True)
            elif not _is_printed(line + "\n"):
                return
            progress.update(done)
    if settings.output is not None:
        say(console, f"{len(texts):,} texts, {count:,} tokens in {short_path(settings.output)}")


def _open(path: Path | None) -> Any:
    if path is None:
        return nullcontext()
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise DataError(f"--output {path} cannot be written: {error.strerror or error}") from error


def _continue_all(
    settings: GenerateSettings,
    language: LanguageModel,
    texts: Sequence[str],
    prompts: Sequence[list[int]],
) -> Iterator[Continued]:
    from .. import models

    size = min(settings.batch_size, len(prompts))
    for number, first in enumerate(range(0, len(prompts), size)):
        batch = list(prompts[first : first + size])
        # The last batch gets rows that nobody reads, so that it needs no program of its own.
        tokens, mask = _pad(batch + batch[-1:] * (size - len(batch)))
        found = models.generate(
            language.model, language.params, tokens, mask, **_options(settings, language, number)
        )
        for text, prompt, row, length in zip(texts[first:], batch, *found, strict=False):
            new = row[:length].tolist()
            whole = "".join(stream_text(language.tokenizer, prompt, new))
            yield Continued(text, whole, len(new), new[-1] in language.stops)


def _pad(prompts: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Shorter prompts filled up on the left, and a mask of what counts."""
    width = max(map(len, prompts))
    tokens = np.array([[0] * (width - len(row)) + row for row in prompts], np.int32)
    mask = np.array([[0] * (width - len(row)) + [1] * len(row) for row in prompts], np.int32)
    return tokens, mask


def _options(settings: GenerateSettings, language: LanguageModel, batch: int) -> dict[str, Any]:
    import jax

    choice = settings.choice
    return {
        "max_new_tokens": settings.max_new_tokens,
        "temperature": choice.temperature,
        "top_k": choice.top_k,
        "top_p": choice.top_p,
        "stop_tokens": language.stops,
        "key": jax.random.fold_in(jax.random.key(choice.seed), batch),
    }
