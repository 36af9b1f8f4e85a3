"""What can be set to move and compare adapters; as in `_settings`, the docstrings are the help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ..tasks.options import Pooling
from .help import shown

ConvertTask = Literal["SEQ_CLS", "TOKEN_CLS", "MASKED_LM", "CAUSAL_LM", "none"]
LeafNames = Literal["auto", "flax", "torch"]
MergeTask = Literal[
    "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "MASKED_LM", "CAUSAL_LM", "SEQ_2_SEQ_LM"
]


@dataclass(frozen=True)
class ConvertSettings:
    """Turn an adapter of this library into one of PEFT, or one of PEFT into ours.

    The kind is recognised by the files; no value is rounded.
    """

    adapter: Positional[Path]
    """An adapter directory of either kind, or an output directory of `lntune-jax train`."""
    output: Positional[Path]
    """Directory that receives the other kind."""
    model: Annotated[str | None, shown("none", "MODEL")] = None
    """The base model; needed from PEFT to ours, and where PEFT wants more than what trained."""
    task: Annotated[ConvertTask | None, shown("the adapter's", "TASK")] = None
    """Task of the base, from PEFT to ours: SEQ_CLS, TOKEN_CLS, MASKED_LM, CAUSAL_LM, or none for
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

    adapter: Path
    """An adapter directory, ours or PEFT's, or an output directory of `lntune-jax train`."""
    output: Path
    """Directory that receives the checkpoint."""
    model: Annotated[str | None, shown("the adapter's", "MODEL")] = None
    """The base model: directory of a Hugging Face model, or a hub id."""
    norms_only: bool = False
    """Write the tuned norms, and leave out the head and other saved modules."""
    task: Annotated[MergeTask | None, shown("the adapter's", "TASK")] = None
    """Task of a head that the base lacks: SEQ_CLS, TOKEN_CLS, QUESTION_ANS, MASKED_LM, CAUSAL_LM
    or SEQ_2_SEQ_LM."""
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
        Positional[tuple[Path, ...]],
        arg(metavar="ADAPTER ...", help_behavior_hint="(required)"),
    ]
    """Adapter directories, ours or PEFT's, or output directories of `lntune-jax train`."""
    model: str
    """The base model: directory of a Hugging Face model, a .gguf file, or a hub id."""
    figure: Annotated[Path | None, shown("none", "FILE")] = None
    """Also draw a figure into this .png, .svg or .pdf file; one that is there is replaced."""
    name_map: Annotated[str | None, shown("none", "NAME")] = None
    """Table of names, for adapters whose trees have other names than transformers."""
