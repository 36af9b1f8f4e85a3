"""What can be set for `generate`; as in `_settings`, the docstrings are the help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from .help import shown
from .options import ComputeType, Quantize


@dataclass(frozen=True)
class Choice:
    """How the next token is chosen."""

    temperature: float = 0.0
    """0 takes the likeliest token each time; above 0 tokens are drawn, the higher the freer."""
    top_k: Annotated[int | None, shown("all", "INT")] = None
    """Draw from so many of the likeliest tokens."""
    top_p: Annotated[float | None, shown("1", "FLOAT")] = None
    """Draw from the fewest likeliest tokens that together have this probability."""
    seed: int = 0
    """Seed of the draws."""


@dataclass(frozen=True)
class GenerateSettings:
    """Continue texts with a language model, an adapter in place or not.

    One --prompt is written to the terminal as its tokens come; several, or a table, go through
    the model in batches, and come out as .jsonl wherever there is no terminal.
    """

    run: Annotated[Path | None, shown("none", "DIR")] = None
    """Output directory of `lntune-jax train`, whose adapter is used."""
    model: Annotated[str | None, shown("the adapter's", "MODEL")] = None
    """Directory of a Hugging Face model, a .gguf file, or a hub id."""
    adapter: Annotated[Path | None, shown("none", "DIR")] = None
    """An adapter directory, ours or PEFT's, whose norms take the place of the model's."""
    prompt: Annotated[tuple[str, ...], shown("none", "TEXT ...")] = ()
    """Texts to continue."""
    data: Annotated[Path | None, shown("none", "FILE")] = None
    """Table of texts: .csv, .tsv, .jsonl or .parquet."""
    text_column: str = "text"
    """Name of the column with the text."""
    output: Annotated[Path | None, shown("the terminal", "FILE")] = None
    """A .jsonl file for the new texts."""
    max_new_tokens: int = 64
    """The most tokens a text grows by; a stop token of the model ends it before."""
    chat: bool = False
    """Each text is a user's message, put into the model's chat template."""
    choice: Choice = field(default_factory=Choice)
    dtype: ComputeType = "float32"
    """Number format of the weights."""
    quantize: Annotated[Quantize | None, shown("as the adapter was trained", "KIND")] = None
    """Keep the kernels of the layers in few bits: int8, int4, nf4 or fp8."""
    batch_size: int = 8
    """Texts that go through the model together."""
