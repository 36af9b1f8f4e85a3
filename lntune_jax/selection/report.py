"""What trains, counted: PEFT's line, and a table of the leaves."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from ..config import LNTuningConfig
from ..names.rules import NameMap
from ..paths import get_shape, join
from .quantized import find_scales
from .roles import NORM_ROLE, SAVED_ROLE, STATE_ROLE
from .select import select_leaves

_TRAINABLE = (NORM_ROLE, SAVED_ROLE)


class LeafReport(NamedTuple):
    """One array leaf: its path, shape, dtype name, and role: norm, saved, frozen or state."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    role: str


class ParamReport(NamedTuple):
    """Counts of a parameter tree. `str()` gives the line that PEFT prints.

    Attributes:
        trainable: elements that train.
        total: elements of all parameters; running statistics, caches and random states are none.
        percent: 100 * trainable / total.
        leaves: a `LeafReport` for each array leaf, in the tree's order.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> report = lnt.report_params({"ln": {"scale": jnp.ones(2)}}, lnt.LNTuningConfig())
        >>> print(report.table())
        leaf      shape  dtype    role
        ------------------------------
        ln.scale  2      float32  norm
        trainable params: 2 || all params: 2 || trainable%: 100.0000
    """

    trainable: int
    total: int
    percent: float
    leaves: tuple[LeafReport, ...]

    def __str__(self) -> str:
        return (
            f"trainable params: {self.trainable:,} || all params: {self.total:,} || "
            f"trainable%: {self.percent:.4f}"
        )

    def table(self, every_leaf: bool = False) -> str:
        """A text table of the leaves that train, or of every leaf, with a last line of counts."""
        shown = [leaf for leaf in self.leaves if every_leaf or leaf.role in _TRAINABLE]
        rows = [("leaf", "shape", "dtype", "role")]
        rows += [(leaf.path, _write_shape(leaf.shape), leaf.dtype, leaf.role) for leaf in shown]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], str(self)])


def report_params(
    params: Any,
    config: LNTuningConfig,
    *,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
) -> ParamReport:
    """Counts what trains; needs no values, so abstract trees of any size will do.

    There is no copy of a norm here, so `total` is the model's own count; PEFT's is larger by the
    trainable norms, which it counts twice. Nor are the scales of quantised kernels counted. The
    arguments are those of `partition_params`.

    Raises:
        SelectionError: nothing trains, a target holds no norm, or `model_type` is unknown.
        TreeError: two leaves have the same path.

    Example:
        >>> import jax
        >>> import lntune_jax as lnt
        >>> shape = lambda *axes: jax.ShapeDtypeStruct(axes, "float32")
        >>> params = {"norm": {"weight": shape(4096)}, "lm_head": {"weight": shape(32000, 4096)}}
        >>> print(lnt.report_params(params, lnt.LNTuningConfig()))
        trainable params: 4,096 || all params: 131,076,096 || trainable%: 0.0031
    """
    selection = select_leaves(params, config, norms, name_map)
    leaves = tuple(
        LeafReport(join(leaf.path), tuple(leaf.value.shape), str(leaf.value.dtype), role)
        for leaf, role in zip(selection.leaves, selection.roles, strict=True)
        if get_shape(leaf.value) is not None
    )
    scales = {join(path) for path in find_scales(leaf.path for leaf in selection.leaves)}
    trainable = sum(math.prod(leaf.shape) for leaf in leaves if leaf.role in _TRAINABLE)
    total = sum(
        math.prod(leaf.shape)
        for leaf in leaves
        if leaf.role != STATE_ROLE and leaf.path not in scales
    )
    return ParamReport(trainable, total, 100 * trainable / max(total, 1), leaves)


def _write_shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"
