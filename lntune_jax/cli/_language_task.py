"""`language.json` of a run: what `evaluate` needs to know of a tuned language model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import DataError
from ..storage.directories import write_text
from ._labels import check_kinds
from ._run_files import read_fields
from ._settings import DataForm
from ._trained_settings import Trained


@dataclass(frozen=True)
class LanguageTask:
    """How documents were read.

    Attributes:
        model: The base model trained on.
        max_length: Tokens in a row at most.
        packing: Whether a row may hold several documents.
        dtype: Number format of the frozen weights.
        form: What a document was.
        text_column: The training table's column of texts.
        quantize: What the kernels of the layers were kept as, or `None` for `dtype`.
    """

    model: str
    max_length: int
    packing: bool
    dtype: str
    form: DataForm
    text_column: str
    quantize: str | None = None


_KINDS = {
    **dict.fromkeys(("model", "dtype", "form", "text_column"), str),
    "max_length": int,
    "packing": bool,
}


def save_language_task(path: Path, task: LanguageTask) -> None:
    """Write `language.json`."""
    write_text(path, json.dumps(asdict(task), indent=2, ensure_ascii=False) + "\n")


def find_language_task(trained: Trained) -> tuple[LanguageTask, Path] | None:
    """The task and the adapter's directory, if the flags name a run of a language model.

    Raises:
        DataError: If its `language.json` is damaged.
    """
    if trained.labels is not None or (trained.run is None and trained.adapter is None):
        return None
    run = None if trained.run is None else trained.run.expanduser().resolve()
    if trained.adapter is not None:
        adapter = trained.adapter.expanduser().resolve()
    else:
        assert run is not None
        adapter = run / "adapter"
    # An adapter of a sweep lies one level deeper.
    beside = adapter.parent.parent if adapter.parent.name == "adapters" else adapter.parent
    path = (run or beside) / "language.json"
    if not path.is_file():
        return None
    try:
        content = read_fields(path)
        check_kinds(content, _KINDS)
        return LanguageTask(**content), adapter
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is not a language.json of `lntune-jax train`: {error}") from error
