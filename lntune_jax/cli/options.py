"""What can be set, one frozen dataclass a subcommand.

The docstrings below are the help text that `--help` prints. Nothing here computes: what a value
may be is checked in `_checks`, and what it does lives with the code that uses it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from ..tasks.options import Columns, ComputeType, Encoding, Language, Quantize, Remat, Targets
from ..trainer.recipe import Recipe
from ..trainer.sweep import Grid
from .help import shown
from .process_options import Processes

TrainTask = Literal["seq_cls", "causal_lm"]


@dataclass(frozen=True)
class ColumnFlags(Columns):
    """The columns of the table, and the rows to evaluate on."""

    eval_data: Annotated[Path | None, shown("rows of --data", "FILE")] = None
    eval_fraction: Annotated[float | None, shown("0.1", "FLOAT")] = None


@dataclass(frozen=True)
class TargetFlags(Targets):
    """Which weights train."""

    targets: Annotated[tuple[str, ...], shown("every norm", "PATTERN ...")] = ()
    exclude: Annotated[tuple[str, ...], shown("none", "PATTERN ...")] = ()
    save_modules: Annotated[tuple[str, ...], shown("the new head", "NAME ...")] = ()


@dataclass(frozen=True)
class EncodingFlags(Encoding):
    """How text reaches the model."""

    max_length: Annotated[int | None, shown("128; 256 for causal_lm", "INT")] = None
    quantize: Annotated[Quantize | None, shown("off", "KIND")] = None


@dataclass(frozen=True)
class RecipeFlags(Recipe):
    """How training goes."""

    learning_rate: Annotated[float | None, shown("0.005; 0.001 for causal_lm", "FLOAT")] = None
    clip_norm: Annotated[float | None, shown("off", "FLOAT")] = None
    max_steps: Annotated[int | None, shown("off", "INT")] = None
    eval_every: Annotated[int | None, shown("each epoch", "STEPS")] = None
    best_by: Annotated[str | None, shown("accuracy; perplexity for causal_lm", "METRIC")] = None
    patience: Annotated[int | None, shown("off", "INT")] = None
    ema: Annotated[float | None, shown("off", "DECAY")] = None


@dataclass(frozen=True)
class SweepFlags(Grid):
    """Many adapters trained at once over one base; the best is kept as the run's own."""

    sweep: Annotated[tuple[str, ...], shown("none", "NAME=VALUE,VALUE ...")] = ()
    seeds: Annotated[int, shown("1", "INT")] = 1
    more_data: Annotated[tuple[Path, ...], shown("none", "FILE ...")] = ()
    adapters_at_once: Annotated[int | None, shown("all", "INT")] = None


@dataclass(frozen=True)
class Memory:
    """What a training step would hold on each device, shown when --length is given.

    It stands beside LoRA on the query and value projections, and full fine-tuning. In the table,
    "working" is what the loss and a single layer need at the peak, "gathered" the weights that a
    device fetches from others for a layer's turn.
    """

    length: Annotated[int | None, shown("off", "INT")] = None
    """Tokens in a row."""
    batch_size: int = 1
    """Rows on each device."""
    dtype: ComputeType = "bfloat16"
    """Number format of weights and activations."""
    quantize: Annotated[Quantize | None, shown("off", "KIND")] = None
    """Kernels of the layers in few bits: int8, int4, nf4 or fp8."""
    mesh: Annotated[str, shown("one device", "AXIS=SIZE,...")] = ""
    """Devices along the axes data, fsdp and tensor, for example fsdp=8,tensor=2."""
    remat: Remat = "none"
    """What a decoder's backward pass computes again to store less."""
    scan_layers: bool = False
    """Count a decoder whose layers run in one loop."""


@dataclass(frozen=True)
class InspectSettings:
    """Show what would train, and what that takes, from the model's config file alone.

    No weights are read. `{0..11}` in a path stands for the layers 0 to 11. The role of a leaf is
    norm, or saved for a module that trains whole: a new head, or one of --save-modules.
    """

    model: Positional[str]
    """Directory of a Hugging Face model, a .gguf file, or a hub id."""
    task: Literal["auto", "SEQ_CLS", "CAUSAL_LM", "none"] = "auto"
    """Which head the model gets; auto: SEQ_CLS for encoders and classifiers, else CAUSAL_LM."""
    num_labels: Annotated[int | None, shown("the file's", "INT")] = None
    """Classes of the SEQ_CLS head."""
    all: bool = False
    """List every leaf on a line of its own, the frozen ones too; without it the layers of a stack
    share a line, and only what trains is listed."""
    trace: bool = False
    """Also say where the norms by name and those found by tracing the model differ."""
    targets: TargetFlags = field(default_factory=TargetFlags)
    memory: Memory = field(default_factory=Memory)


@dataclass(frozen=True)
class TrainSettings:
    """Train the norms of a pretrained model: a text classifier, or a language model.

    A classifier gets a new head, which trains too; a language model is --task causal_lm.
    The output directory receives the adapter, metrics, checkpoints and a figure.
    """

    model: str
    """Directory of a Hugging Face model, a .gguf file, or a hub id."""
    data: Path
    """Table of texts and labels: .csv, .tsv, .jsonl or .parquet; for causal_lm also .txt, or
    columns prompt and completion, or messages."""
    output: Path
    """Directory that receives the run."""
    task: TrainTask = "seq_cls"
    """What is trained: a classifier of texts, or a causal language model."""
    resume: bool = False
    """Continue the run in --output from its last checkpoint, or start it if there is none."""
    overwrite: bool = False
    """Replace the run in --output."""
    stop_after_steps: Annotated[int | None, shown("off", "INT")] = None
    """Stop this call after so many steps with a checkpoint, to go on with --resume."""
    checkpoint_every: Annotated[int | None, shown("each evaluation", "STEPS")] = None
    """Also save a checkpoint after every so many steps."""
    checkpoint_minutes: Annotated[float | None, shown("off", "MINUTES")] = None
    """Also save a checkpoint when so many minutes have passed since the last."""
    columns: ColumnFlags = field(default_factory=ColumnFlags)
    language: Language = field(default_factory=Language)
    targets: TargetFlags = field(default_factory=TargetFlags)
    encoding: EncodingFlags = field(default_factory=EncodingFlags)
    recipe: RecipeFlags = field(default_factory=RecipeFlags)
    sweep: SweepFlags = field(default_factory=SweepFlags)
    processes: Processes = field(default_factory=Processes)
