"""What can be set, one frozen dataclass a subcommand.

The docstrings below are the help text that `--help` prints. Nothing here computes: what a value
may be is checked in `_checks`, and what it does lives with the code that uses it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from .help import shown
from .process_options import Processes

Schedule = Literal["linear", "cosine", "constant"]
Metric = Literal["accuracy", "macro_f1", "loss", "perplexity"]
TrainTask = Literal["seq_cls", "causal_lm"]
DataForm = Literal["auto", "text", "completion", "messages"]
ComputeType = Literal["float32", "bfloat16"]
Quantize = Literal["int8", "int4", "nf4", "fp8"]
OnNan = Literal["stop", "skip"]
Remat = Literal["none", "dots_saveable", "dots_with_no_batch_dims_saveable", "full"]
Pooling = Literal["default", "own", "mean", "cls"]


@dataclass(frozen=True)
class Columns:
    """The columns of the table, and the rows to evaluate on."""

    text_column: str = "text"
    """Name of the column with the text."""
    label_column: str = "label"
    """Name of the column with the label (words or numbers)."""
    eval_data: Annotated[Path | None, shown("rows of --data", "FILE")] = None
    """A second table to evaluate on while training."""
    eval_fraction: Annotated[float | None, shown("0.1", "FLOAT")] = None
    """Share of --data kept out of training and evaluated on, the same share of every label."""
    train_split: Annotated[str | None, shown("train", "NAME")] = None
    """The split to train on, where --data is a dataset: owner/name, or saved by save_to_disk."""
    eval_split: Annotated[str | None, shown("rows of --data", "NAME")] = None
    """The split of --data to evaluate on while training, where it is a dataset."""
    max_train_rows: Annotated[int | None, shown("all", "INT")] = None
    """Train on so many rows at most, drawn by --seed once the others are held out."""
    skip_bad_rows: bool = False
    """Leave rows out that cannot be read, or have no text or label, and say how many."""


@dataclass(frozen=True)
class Language:
    """Only for --task causal_lm."""

    form: DataForm = "auto"
    """What a row is: a text, a prompt and its completion, or a chat; auto tells by the columns."""
    no_packing: bool = False
    """Give each document rows of its own, padded, instead of several to a row."""


@dataclass(frozen=True)
class Selection:
    """Which weights train."""

    targets: Annotated[tuple[str, ...], shown("every norm", "PATTERN ...")] = ()
    """Norm modules to train: ends of module paths, or regular expressions; none: no norm at all,
    so that --save-modules train alone."""
    exclude: Annotated[tuple[str, ...], shown("none", "PATTERN ...")] = ()
    """Norm modules to leave frozen."""
    save_modules: Annotated[tuple[str, ...], shown("the new head", "NAME ...")] = ()
    """Whole modules that train too and are saved with the norms."""


@dataclass(frozen=True)
class Encoding:
    """How text reaches the model."""

    max_length: Annotated[int | None, shown("128; 256 for causal_lm", "INT")] = None
    """Tokens in a row at most; longer texts are cut (causal_lm: split into several rows)."""
    buckets: int = 4
    """Batches are padded to at most so many lengths: one compiled program each."""
    pooling: Pooling = "default"
    """What a classifier reads of an encoder: what the model's files say (default), what its
    architecture does (own), the mean over tokens, or the first token (cls)."""
    dtype: ComputeType = "float32"
    """Number format of the frozen weights; what trains is kept in float32."""
    scan_layers: bool = False
    """Train a decoder's layers in one loop, which compiles faster; the adapter fits either way."""
    quantize: Annotated[Quantize | None, shown("off", "KIND")] = None
    """Keep the kernels of the layers in few bits, for less memory: int8, int4, nf4 or fp8."""


@dataclass(frozen=True)
class Recipe:
    """How training goes."""

    learning_rate: Annotated[float | None, shown("0.005; 0.001 for causal_lm", "FLOAT")] = None
    """Peak learning rate of the norms."""
    head_learning_rate: float = 1e-3
    """Peak learning rate of the saved modules (the head)."""
    schedule: Schedule = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_fraction: float = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.0
    """AdamW weight decay of the saved modules; norms are never decayed."""
    clip_norm: Annotated[float | None, shown("off", "FLOAT")] = None
    """Largest gradient norm."""
    on_nan: OnNan = "stop"
    """Where a loss or gradient is NaN or infinite: stop, or skip that step's update."""
    epochs: int = 3
    """Passes over the training rows."""
    max_steps: Annotated[int | None, shown("off", "INT")] = None
    """Train for so many steps at most; the schedule ends there."""
    batch_size: int = 32
    """Rows a step."""
    eval_batch_size: int = 64
    """Rows a batch in evaluation."""
    eval_every: Annotated[int | None, shown("each epoch", "STEPS")] = None
    """Evaluate after so many steps."""
    best_by: Annotated[Metric | None, shown("accuracy; perplexity for causal_lm", "METRIC")] = None
    """The evaluation figure that picks the adapter to keep."""
    patience: Annotated[int | None, shown("off", "INT")] = None
    """Stop after so many evaluations in a row without a better one."""
    dropout: bool = False
    """Train with the model's own dropout."""
    seed: int = 0
    """Seed of the new head, the split, the order of rows and dropout."""


@dataclass(frozen=True)
class Sweep:
    """Many adapters trained at once over one base; the best is kept as the run's own."""

    sweep: Annotated[tuple[str, ...], shown("none", "NAME=VALUE,VALUE ...")] = ()
    """Try each value of learning_rate, head_learning_rate or weight_decay, in every combination."""
    seeds: Annotated[int, shown("1", "INT")] = 1
    """How many seeds to train with, from --seed on (a count, 3; not a list)."""
    more_data: Annotated[tuple[Path, ...], shown("none", "FILE ...")] = ()
    """Tables beside --data: every combination is trained on each of them, alone."""
    adapters_at_once: Annotated[int | None, shown("all", "INT")] = None
    """How many adapters share a step, to bound the memory."""


@dataclass(frozen=True)
class Memory:
    """What a training step would hold on each device, shown when --length is given."""

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
    """Show what would train, from the model's config file alone (reads no weights)."""

    model: Positional[str]
    """Directory of a Hugging Face model, a .gguf file, or a hub id."""
    task: Literal["auto", "SEQ_CLS", "CAUSAL_LM", "none"] = "auto"
    """Which head the model gets; auto: SEQ_CLS for encoders and classifiers, else CAUSAL_LM."""
    num_labels: Annotated[int | None, shown("the file's", "INT")] = None
    """Classes of the SEQ_CLS head."""
    trace: bool = False
    """Also say where the norms by name and those found by tracing the model differ."""
    selection: Selection = field(default_factory=Selection)
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
    """Table of texts and labels: .csv, .tsv, .jsonl or .parquet, or a dataset, owner/name; for
    causal_lm also .txt, or columns prompt and completion, or messages."""
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
    columns: Columns = field(default_factory=Columns)
    language: Language = field(default_factory=Language)
    selection: Selection = field(default_factory=Selection)
    encoding: Encoding = field(default_factory=Encoding)
    recipe: Recipe = field(default_factory=Recipe)
    sweep: Sweep = field(default_factory=Sweep)
    processes: Processes = field(default_factory=Processes)
