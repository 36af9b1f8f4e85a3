"""What can be set, one frozen dataclass a subcommand.

The docstrings below are the help text that `--help` prints. Nothing here computes: what a value
may be is checked in `checks`, and what it does lives with the code that uses it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from ..tasks.options import (
    Columns,
    ComputeType,
    Encoding,
    Language,
    Pooling,
    Quantize,
    Remat,
    Targets,
)
from ..trainer.recipe import Recipe, Schedule
from ..trainer.sweep import Grid
from .flags import Shown, also, shown

TrainTask = Literal["seq_cls", "token_cls", "causal_lm", "similarity"]
Board = Literal["tensorboard", "wandb", "trackio", "none"]
DemoTask = Literal["seq_cls", "causal_lm"]
InspectTask = Literal["auto", "seq_cls", "token_cls", "causal_lm", "similarity", "none"]
ConvertTask = Literal["seq_cls", "token_cls", "masked_lm", "causal_lm", "none"]
PlanMethod = Literal["ln", "lora", "full"]
PlanTask = Literal["auto", "seq_cls", "token_cls", "causal_lm"]
LeafNames = Literal["auto", "flax", "torch"]
MergeTask = Literal[
    "seq_cls", "token_cls", "question_ans", "masked_lm", "causal_lm", "seq_2_seq_lm"
]

# Names that people know from Hugging Face.
_MODEL, _OUTPUT = ("--model-name-or-path",), ("--output-dir",)


@dataclass(frozen=True)
class ColumnFlags(Columns):
    """The columns of the table, and the rows to evaluate on."""

    text_pair_column: Annotated[str | None, shown("none", "NAME")] = None
    eval_data: Annotated[Path | None, shown("rows of --data", "FILE", "--validation-file")] = None
    eval_fraction: Annotated[float | None, shown("0.1", "FLOAT")] = None
    train_split: Annotated[str | None, shown("train", "NAME")] = None
    eval_split: Annotated[str | None, shown("rows of --data", "NAME")] = None
    max_train_rows: Annotated[int | None, shown("all", "INT")] = None


@dataclass(frozen=True)
class LanguageFlags(Language):
    """Only for --task causal_lm."""


@dataclass(frozen=True)
class TargetFlags(Targets):
    """Which weights train."""

    targets: Annotated[tuple[str, ...], shown("every norm", "PATTERN ...", "--target-modules")] = ()
    exclude: Annotated[tuple[str, ...], shown("none", "PATTERN ...", "--exclude-modules")] = ()
    save_modules: Annotated[
        tuple[str, ...], shown("the new head", "NAME ...", "--modules-to-save")
    ] = ()


@dataclass(frozen=True)
class EncodingFlags(Encoding):
    """How text reaches the model."""

    max_length: Annotated[
        int | None, shown("128; 256 for causal_lm", "INT", "--max-seq-length")
    ] = None
    quantize: Annotated[Quantize | None, shown("off", "KIND")] = None


@dataclass(frozen=True)
class RecipeFlags(Recipe):
    """How training goes."""

    learning_rate: Annotated[
        float | None, shown("0.005; 0.001 for other tasks", "FLOAT", "--lr")
    ] = None
    schedule: Annotated[Schedule, also("--lr-scheduler-type")] = "linear"
    warmup_fraction: Annotated[float, also("--warmup-ratio")] = 0.1
    clip_norm: Annotated[float | None, shown("off", "FLOAT", "--max-grad-norm")] = None
    epochs: Annotated[int, also("--num-train-epochs")] = 3
    max_steps: Annotated[int | None, shown("off", "INT")] = None
    batch_size: Annotated[int, also("--per-device-train-batch-size")] = 32
    eval_batch_size: Annotated[int, also("--per-device-eval-batch-size")] = 64
    eval_every: Annotated[int | None, shown("each epoch", "STEPS", "--eval-steps")] = None
    best_by: Annotated[
        str | None,
        shown("the first shown", "METRIC", "--metric-for-best-model"),
    ] = None
    patience: Annotated[int | None, shown("off", "INT", "--early-stopping-patience")] = None
    gradient_accumulation: Annotated[int, also("--gradient-accumulation-steps")] = 1
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
    """What a training step would hold on each device, shown when --max-length is given.

    It stands beside LoRA on the query and value projections, and full fine-tuning. In the table,
    "working" is what the loss and a single layer need at the peak, "gathered" the weights that a
    device fetches from others for a layer's turn.
    """

    max_length: Annotated[int | None, shown("off", "INT", "--length")] = None
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
class Processes:
    """One run on several devices, of this process or of several."""

    distributed: bool = False
    """Join the other processes of the run: each is started with the same command."""
    coordinator: Annotated[str | None, shown("found by the launcher", "HOST:PORT")] = None
    """Where process 0 listens; else $JAX_COORDINATOR_ADDRESS, or what SLURM, GKE or a TPU says."""
    num_processes: Annotated[int | None, shown("found by the launcher", "INT")] = None
    """How many there are; else $JAX_NUM_PROCESSES."""
    process_id: Annotated[int | None, shown("found by the launcher", "INT")] = None
    """Which of them this is, from 0; else $JAX_PROCESS_ID."""
    mesh: Annotated[str, shown("one device; all if distributed", "AXIS=SIZE,...")] = ""
    """Devices along the axes data, fsdp and tensor, for example data=2,fsdp=4: a batch is divided
    over data and fsdp, the weights over fsdp and tensor."""
    heartbeat_seconds: int = 100
    """A process that is not heard of for so long counts as lost, and the run ends."""


@dataclass(frozen=True)
class InspectSettings:
    """Show what would train, and what that takes, from the model's config file alone.

    No weights are read. `{0..11}` in a path stands for the layers 0 to 11. The role of a leaf is
    norm, or saved for a module that trains whole: a new head, or one of --save-modules.
    """

    model: Annotated[str, Shown(metavar="MODEL", also=_MODEL, is_positional=True)]
    """Directory of a Hugging Face model, a .gguf file, or a hub id."""
    revision: Annotated[str | None, shown("the newest", "NAME", "--model-revision")] = None
    """A branch, tag or commit of the model on the hub."""
    task: InspectTask = "auto"
    """Which head the model gets: similarity and none give it none; auto: seq_cls for encoders and
    classifiers, else causal_lm."""
    num_labels: Annotated[int | None, shown("the file's", "INT")] = None
    """Classes of the head of seq_cls or token_cls."""
    trace: bool = False
    """Also say where the norms by name and those found by tracing the model differ."""
    all: bool = False
    """List every leaf on a line of its own, the frozen ones too; without it the layers of a stack
    share a line, and only what trains is listed."""
    targets: TargetFlags = field(default_factory=TargetFlags)
    memory: Memory = field(default_factory=Memory)


@dataclass(frozen=True)
class PlanSettings:
    """Compile a training step for chips that you do not have, and say what it takes there.

    Of the model only the config is read. The report says what each device holds, computes and
    sends, by the chips' own compiler; none of them takes part. Where the step does not fit, the
    first smaller one that does is looked for.
    """

    model: Annotated[str, Shown(metavar="MODEL", also=_MODEL, is_positional=True)]
    """Directory of a Hugging Face model, its config.json, a .gguf file, or a hub id."""
    chips: Annotated[str, also(metavar="KIND-COUNT")]
    """Kind and number of chips: v4, v5e, v5p, v6e or 7x, for example v5e-8; or h100, h200."""
    mesh: Annotated[str, shown("fsdp over all", "AXIS=SIZE,...")] = ""
    """Devices along the axes data, fsdp and tensor, for example fsdp=8,tensor=2."""
    batch_size: Annotated[int | None, shown("one a place", "INT", "--batch")] = None
    """Rows of all devices together."""
    max_length: Annotated[int, also("--length")] = 2048
    """Tokens in a row."""
    method: PlanMethod = "ln"
    """What trains: the norms (ln), LoRA's factors on query and value (lora), or all (full)."""
    compare: bool = False
    """Also compile the two other methods."""
    task: PlanTask = "auto"
    """Which head the model gets; auto: seq_cls for encoders and classifiers, else causal_lm."""
    num_labels: Annotated[int | None, shown("the file's", "INT")] = None
    """Classes of the head of seq_cls or token_cls."""
    dtype: ComputeType = "bfloat16"
    """Number format of weights and activations."""
    remat: Annotated[Remat | None, shown("none", "KIND")] = None
    """What a decoder's backward pass computes again to store less: none, dots_saveable,
    dots_with_no_batch_dims_saveable or full."""
    attention: Annotated[str | None, shown("the chip's kernel", "KIND")] = None
    """How a decoder computes attention, as `attention=` of lntune_jax.models."""
    quantize: Annotated[Quantize | None, shown("off", "KIND")] = None
    """Kernels of the layers in few bits: int8, int4, nf4 or fp8."""
    rank: int = 8
    """Rank of LoRA's factors."""
    no_search: bool = False
    """Do not look for a smaller step where this one does not fit."""
    json: Annotated[Path | None, shown("none", "FILE")] = None
    """Also write all figures into a file."""
    revision: Annotated[str | None, shown("the newest", "NAME", "--model-revision")] = None
    """A branch, tag or commit of the model on the hub."""


@dataclass(frozen=True)
class TrainSettings:
    """Train the norms of a pretrained model: a text classifier, or a language model.

    A classifier gets a new head, which trains too; one of words, for named entities, is
    --task token_cls, a language model --task causal_lm.
    The output directory receives the adapter, metrics, checkpoints and a figure.
    """

    model: Annotated[str, also(*_MODEL, metavar="MODEL")]
    """Directory of a Hugging Face model, a .gguf file, or a hub id."""
    data: Annotated[Path, also("--train-file", "--dataset", metavar="FILE")]
    """Table of texts and labels: .csv, .tsv, .jsonl or .parquet, or a dataset, owner/name; for
    causal_lm also .txt, or columns prompt and completion, or messages; for token_cls lists of
    words and labels, or CoNLL text (.conll, .txt); for similarity columns sentence1, sentence2 and
    score, or anchor and positive, with negative or without."""
    output: Annotated[Path, also(*_OUTPUT, metavar="DIR")]
    """Directory that receives the run."""
    task: TrainTask = "seq_cls"
    """What is trained: a classifier of texts or of words, a causal language model, or embeddings
    of texts."""
    revision: Annotated[str | None, shown("the newest", "NAME", "--model-revision")] = None
    """A branch, tag or commit of the model on the hub."""
    config: Annotated[Path | None, shown("none", "FILE")] = None
    """A .yaml file of these flags, as each run writes one; flags on the command line win."""
    dry_run: bool = False
    """Read everything, say what would train and what a row looks like, and stop."""
    resume: bool = False
    """Continue the run in --output from its last checkpoint, or start it if there is none; --resume
    RUN continues that run and needs no other flag. --max-steps and --epochs may be raised."""
    overwrite: Annotated[bool, also("--overwrite-output-dir")] = False
    """Replace the run in --output."""
    stop_after_steps: Annotated[int | None, shown("off", "INT")] = None
    """Stop this call after so many steps with a checkpoint, to go on with --resume."""
    checkpoint_every: Annotated[int | None, shown("each evaluation", "STEPS", "--save-steps")] = (
        None
    )
    """Also save a checkpoint after every so many steps."""
    checkpoint_minutes: Annotated[float | None, shown("off", "MINUTES")] = None
    """Also save a checkpoint when so many minutes have passed since the last."""
    report_to: tuple[Board, ...] = ("tensorboard",)
    """Who gets the figures beside metrics.jsonl: tensorboard, wandb, trackio, or none."""
    push_to_hub: Annotated[str | None, shown("nowhere", "OWNER/NAME", "--hub-model-id")] = None
    """Upload the adapter, with a card, to this repository of the hub when the run is finished."""
    columns: ColumnFlags = field(default_factory=ColumnFlags)
    language: LanguageFlags = field(default_factory=LanguageFlags)
    targets: TargetFlags = field(default_factory=TargetFlags)
    encoding: EncodingFlags = field(default_factory=EncodingFlags)
    recipe: RecipeFlags = field(default_factory=RecipeFlags)
    sweep: SweepFlags = field(default_factory=SweepFlags)
    processes: Processes = field(default_factory=Processes)


@dataclass(frozen=True)
class Trained:
    """Which trained model to use."""

    run: Annotated[Path | None, shown("none", "DIR")] = None
    """Output directory of `lntune-jax train`, whose adapter is used."""
    adapter: Annotated[Path | None, shown("none", "DIR")] = None
    """An adapter directory; nothing beside it is read."""
    model: Annotated[str | None, shown("the one trained on", "MODEL", *_MODEL)] = None
    """The base model, if it has moved since training."""
    revision: Annotated[str | None, shown("the one trained on", "NAME", "--model-revision")] = None
    """A branch, tag or commit of the model on the hub."""
    labels: Annotated[tuple[str, ...], shown("the adapter's", "NAME ...")] = ()
    """Names of a classifier's classes in their order, where the adapter does not say them."""
    pooling: Annotated[Pooling | None, shown("the adapter's", "POOLING")] = None
    """How a classifier pools, where the adapter does not say: as `train --pooling`."""
    max_length: Annotated[int | None, shown("the adapter's", "INT")] = None
    """Tokens in a row at most, where the adapter does not say."""
    batch_size: Annotated[int, also("--per-device-eval-batch-size")] = 64
    """Rows a batch."""
    buckets: int = 4
    """Batches are padded to at most so many lengths: one compiled program each."""


@dataclass(frozen=True)
class EvaluateSettings:
    """Measure a trained adapter on a table: accuracy, F1, a row a class, confusion.

    Of a language model: perplexity, of embeddings: correlations, with the adapter and without it.
    """

    data: Annotated[Path, also("--dataset", metavar="FILE")]
    """Table of texts and labels: .csv, .tsv, .jsonl or .parquet; for a language model as in
    training."""
    text_column: Annotated[str | None, shown("as in training", "NAME")] = None
    """Name of the column with the text."""
    text_pair_column: Annotated[str | None, shown("as in training", "NAME")] = None
    """Name of the column with the second text, of a classifier of two."""
    label_column: Annotated[str | None, shown("as in training", "NAME")] = None
    """Name of the column with the label."""
    split: str = "test"
    """The split, where --data is a dataset: owner/name, or saved by save_to_disk."""
    skip_bad_rows: bool = False
    """Leave rows out that cannot be read, or have no text or label, and say how many."""
    output: Annotated[Path | None, shown("none", "FILE")] = None
    """Also write the figures to this .json file."""
    trained: Trained = field(default_factory=Trained)


@dataclass(frozen=True)
class PredictSettings:
    """Label new texts with a trained adapter, or give their embeddings."""

    text: Annotated[tuple[str, ...], shown("none", "TEXT ...")] = ()
    """Texts to label."""
    text_pair: Annotated[tuple[str, ...], shown("none", "TEXT ...")] = ()
    """The second text of each, of a classifier of two."""
    data: Annotated[Path | None, shown("none", "FILE", "--dataset")] = None
    """Table of texts: .csv, .tsv, .jsonl or .parquet."""
    text_column: Annotated[str | None, shown("as in training", "NAME")] = None
    """Name of the column with the text."""
    text_pair_column: Annotated[str | None, shown("as in training", "NAME")] = None
    """Name of the column with the second text, of a classifier of two."""
    output: Annotated[Path | None, shown("the terminal", "FILE")] = None
    """Where predictions go: .jsonl or .csv."""
    trained: Trained = field(default_factory=Trained)


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
    model: Annotated[str | None, shown("the adapter's", "MODEL", *_MODEL)] = None
    """Directory of a Hugging Face model, a .gguf file, or a hub id."""
    revision: Annotated[str | None, shown("the adapter's", "NAME", "--model-revision")] = None
    """A branch, tag or commit of the model on the hub."""
    adapter: Annotated[Path | None, shown("none", "DIR")] = None
    """An adapter directory, ours or PEFT's, whose norms take the place of the model's."""
    prompt: Annotated[tuple[str, ...], shown("none", "TEXT ...")] = ()
    """Texts to continue."""
    data: Annotated[Path | None, shown("none", "FILE", "--dataset")] = None
    """Table of texts: .csv, .tsv, .jsonl or .parquet."""
    text_column: str = "text"
    """Name of the column with the text."""
    skip_bad_rows: bool = False
    """Leave rows out that cannot be read, or have no text, and say how many."""
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


@dataclass(frozen=True)
class ConvertSettings:
    """Turn an adapter of this library into one of PEFT, or one of PEFT into ours.

    The kind is recognised by the files; no value is rounded.
    """

    adapter: Annotated[Path, Shown(also=("--run",), is_positional=True)]
    """An adapter directory of either kind, or an output directory of `lntune-jax train`."""
    output: Annotated[Path, Shown(also=_OUTPUT, is_positional=True)]
    """Directory that receives the other kind."""
    model: Annotated[str | None, shown("none", "MODEL", *_MODEL)] = None
    """The base model; needed from PEFT to ours, and where PEFT wants more than what trained."""
    task: Annotated[ConvertTask | None, shown("the adapter's", "TASK")] = None
    """Task of the base, from PEFT to ours: seq_cls, token_cls, masked_lm, causal_lm, or none for
    the bare model."""
    pooling: Pooling = "default"
    """How the classifier pools, from PEFT to ours: as `train --pooling`."""
    name_map: Annotated[str | None, shown("none", "NAME")] = None
    """Table of names, for an adapter whose tree has other names than transformers."""
    leaf_names: LeafNames = "auto"
    """How leaves are called, from PEFT to ours: flax as in lntune_jax.models, torch as in PyTorch;
    auto takes flax where lntune_jax.models has the architecture."""
    overwrite: bool = False
    """Replace the adapter in OUTPUT."""


@dataclass(frozen=True)
class MergeSettings:
    """Write a full Hugging Face checkpoint with an adapter in place.

    What the adapter does not hold is copied from the base, bit for bit.
    """

    adapter: Annotated[Path, also("--run", metavar="DIR")]
    """An adapter directory, ours or PEFT's, or an output directory of `lntune-jax train`."""
    output: Annotated[Path, also(*_OUTPUT, metavar="DIR")]
    """Directory that receives the checkpoint."""
    model: Annotated[str | None, shown("the adapter's", "MODEL", *_MODEL)] = None
    """The base model: directory of a Hugging Face model, or a hub id."""
    revision: Annotated[str | None, shown("the adapter's", "NAME", "--model-revision")] = None
    """A branch, tag or commit of the model on the hub."""
    norms_only: bool = False
    """Write the tuned norms, and leave out the head and other saved modules."""
    task: Annotated[MergeTask | None, shown("the adapter's", "TASK")] = None
    """Task of a head that the base lacks: seq_cls, token_cls, question_ans, masked_lm, causal_lm
    or seq_2_seq_lm."""
    labels: Annotated[tuple[str, ...], shown("the adapter's", "NAME ...")] = ()
    """Names of a classifier's classes in their order, where the adapter does not say them."""
    name_map: Annotated[str | None, shown("none", "NAME")] = None
    """Table of names, for an adapter whose tree has other names than transformers."""
    overwrite: bool = False
    """Replace the merged checkpoint in --output; nothing else is ever replaced."""


@dataclass(frozen=True)
class CompareSettings:
    """Show how far adapters moved each norm from the base, and how they relate.

    Prints tables, and draws them with --figure. The base's files are read, no model is run.
    """

    adapters: Annotated[
        tuple[Path, ...],
        Shown(metavar="ADAPTER ...", also=("--adapter", "--run"), is_positional=True),
    ]
    """Adapter directories, ours or PEFT's, or output directories of `lntune-jax train`."""
    model: Annotated[str, also(*_MODEL, metavar="MODEL")]
    """The base model: directory of a Hugging Face model, a .gguf file, or a hub id."""
    figure: Annotated[Path | None, shown("none", "FILE")] = None
    """Also draw a figure: a .png, .svg or .pdf file; one that is there is replaced."""
    name_map: Annotated[str | None, shown("none", "NAME")] = None
    """Table of names, for adapters whose trees have other names than transformers."""


@dataclass(frozen=True)
class DemoSettings:
    """The whole job on a small real model and real data, on a CPU, in minutes.

    MiniLM on film reviews: a head on the frozen encoder, then norms and head.
    With --task causal_lm, SmolLM2 on longer ones: its norms in float32 over a float32
    and over a bfloat16 base, and in bfloat16, where small steps round to nothing.
    The adapter is saved, restored into a fresh base, and predictions compared.
    """

    task: DemoTask = "seq_cls"
    """What is trained: a classifier of texts, or a causal language model."""
    output: Annotated[Path, also(*_OUTPUT)] = Path("demo-output")
    """Directory that receives the runs and the figure; an earlier demo there is replaced."""
    full: bool = False
    """Also train every weight of the classifier, for comparison (several times slower)."""
    seeds: tuple[int, ...] = (0,)
    """Train once with each of these seeds."""
    steps: Annotated[int | None, shown("the whole recipe", "INT")] = None
    """Train for so few steps only, on fewer rows: a smoke test, not a result."""
    learning_rate: Annotated[float | None, shown("0.001", "FLOAT")] = None
    """Peak learning rate of the language model's norms."""
