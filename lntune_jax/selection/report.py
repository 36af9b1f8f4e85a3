"""What trains, counted: PEFT's line, and a table of the leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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

    def table(self, every_leaf: bool = False, fold: bool = False) -> str:
        """A text table of leaves, with a last line of counts.

        Args:
            every_leaf: whether leaves that do not train are listed too.
            fold: whether the layers of a stack share a line, as `fold_layers` writes it. A dtype
                that all leaves share is left out then.
        """
        shown = [leaf for leaf in self.leaves if every_leaf or leaf.role in TRAINABLE_ROLES]
        shown = fold_layers(shown) if fold else shown
        rows = [("leaf", "shape", "dtype", "role")]
        rows += [(leaf.path, _write_shape(leaf.shape), leaf.dtype, leaf.role) for leaf in shown]
        if fold and len({leaf.dtype for leaf in shown}) == 1:
            rows = [(path, shape, role) for path, shape, _, role in rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], str(self)])


def fold_layers(leaves: Sequence[LeafReport]) -> list[LeafReport]:
    """Leaves that differ only in the number of their layer, as one leaf in the place of the first.

    The numbers stand in braces, and how many they are stands before the shape. Leaves of different
    shape, dtype or role stay apart.

    Example:
        >>> names = [f"layers.{number}.norm.scale" for number in (0, 1, 2, 3, 7)]
        >>> fold_layers([LeafReport(name, (8,), "float32", "norm") for name in names])
        [LeafReport(path='layers.{0..3,7}.norm.scale', shape=(5, 8), dtype='float32', role='norm')]
    """
    found = [(tuple(leaf.path.split(".")), leaf) for leaf in leaves]
    for place in range(max((len(parts) for parts, _ in found), default=0)):
        groups: dict[Any, tuple[LeafReport, list[int]]] = {}
        for parts, leaf in found:
            is_number = place < len(parts) and parts[place].isdecimal()
            before, after = parts[:place], parts[place + is_number :]
            key = (is_number, before, after, leaf.shape, leaf.dtype, leaf.role)
            numbers = groups.setdefault(key, (leaf, []))[1]
            numbers += [int(parts[place])] if is_number else []
        found = []
        for (_, before, after, *_), (leaf, numbers) in groups.items():
            if numbers[1:]:
                # Where several places are folded, the counts stand in the order of the braces.
                axis = sum(part.startswith("{") for part in before)
                leaf = leaf._replace(shape=(*leaf.shape[:axis], len(numbers), *leaf.shape[axis:]))
            found.append((before + _write_numbers(sorted(numbers)) + after, leaf))
    return [leaf._replace(path=".".join(parts)) for parts, leaf in found]


def _write_numbers(numbers: Sequence[int]) -> tuple[str, ...]:
    """One number, or several in braces, three and more in a row as a range; or nothing."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [f"{run[0]}..{run[-1]}" if run[2:] else ",".join(map(str, run)) for run in runs]
    return ("{" + ",".join(words) + "}",) if numbers[1:] else tuple(words)


def _write_shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"
