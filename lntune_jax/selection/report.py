"""What trains, counted: PEFT's line, and a table of the leaves."""

from __future__ import annotations

from typing import NamedTuple

from .roles import TRAINABLE_ROLES


class LeafReport(NamedTuple):
    """One array leaf: its path, shape, dtype name, and role: norm, saved, frozen or state.

    Example:
        >>> LeafReport("ln.scale", (4,), "float32", "norm").role
        'norm'
    """

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
        shown = [leaf for leaf in self.leaves if every_leaf or leaf.role in TRAINABLE_ROLES]
        rows = [("leaf", "shape", "dtype", "role")]
        rows += [(leaf.path, _write_shape(leaf.shape), leaf.dtype, leaf.role) for leaf in shown]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], str(self)])


def _write_shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"
