"""What can be set of a task: its data, its columns, how text reaches the model, what trains.

The docstrings below the fields are the help text that the command line prints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..data.columns import Columns, DataForm

ComputeType = Literal["float32", "bfloat16"]
Quantize = Literal["int8", "int4", "nf4", "fp8"]
Pooling = Literal["default", "own", "mean", "cls"]
Remat = Literal["none", "dots_saveable", "dots_with_no_batch_dims_saveable", "full"]


@dataclass(frozen=True)
class Language:
    """Only for --task causal_lm.

    Example:
        >>> Language(form="messages").no_packing
        False
    """

    form: DataForm = "auto"
    """What a row is: a text, a prompt and its completion, or a chat; auto tells by the columns."""
    no_packing: bool = False
    """Give each document rows of its own, padded, instead of several to a row."""


@dataclass(frozen=True)
class Targets:
    """Which weights train.

    Example:
        >>> Targets(save_modules=("classifier",)).targets
        ()
    """

    targets: tuple[str, ...] = ()
    """Norm modules to train: ends of module paths, or regular expressions; none: no norm at all,
    so that --save-modules train alone."""
    exclude: tuple[str, ...] = ()
    """Norm modules to leave frozen."""
    save_modules: tuple[str, ...] = ()
    """Whole modules that train too and are saved with the norms."""


@dataclass(frozen=True)
class Encoding:
    """How text reaches the model.

    Example:
        >>> Encoding(dtype="bfloat16").buckets
        4
    """

    max_length: int | None = None
    """Tokens in a row at most; longer texts are cut (causal_lm: split into several rows)."""
    buckets: int = 4
    """Batches are padded to at most so many lengths: one compiled program each."""
    pooling: Pooling = "default"
    """What a classifier reads of an encoder: what the model's files say (default), what its
    architecture does (own), the mean over tokens, or the first token (cls)."""
    new_head: bool = False
    """Draw a classifier's head anew, also where the model has one (of other or more labels)."""
    dtype: ComputeType = "float32"
    """Number format of the frozen weights; what trains is kept in float32."""
    scan_layers: bool = False
    """Train a decoder's layers in one loop, which compiles faster; the adapter fits either way."""
    remat: Remat = "none"
    """What a decoder's backward pass computes again to store less."""
    quantize: Quantize | None = None
    """Keep the kernels of the layers in few bits, for less memory: int8, int4, nf4 or fp8."""


@dataclass(frozen=True)
class TaskOptions:
    """All that a task is made of.

    Attributes:
        model: Directory of a Hugging Face model, a GGUF file, or a hub id.
        data: The table.
        more_data: Tables beside it, each for adapters of its own.
        batch_size: Rows a step; on a mesh the devices share them.
        seed: Seed of the new head, and of the rows that are held out.
        revision: A branch, tag or commit of the model on the hub.

    Example:
        >>> TaskOptions("owner/name", Path("reviews.csv"), batch_size=8).columns.text_column
        'text'
    """

    model: str
    data: Path
    more_data: tuple[Path, ...] = ()
    columns: Columns = field(default_factory=Columns)
    language: Language = field(default_factory=Language)
    targets: Targets = field(default_factory=Targets)
    encoding: Encoding = field(default_factory=Encoding)
    batch_size: int = 32
    seed: int = 0
    revision: str | None = None
