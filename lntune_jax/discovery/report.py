"""What a trace says about norms: which leaves are whose scale and bias, and what it cannot say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_SELECTED = ("layer", "rms")


@dataclass(frozen=True)
class DiscoveredNorm:
    """One parameter that scales or shifts a normalised activation.

    Attributes:
        path: its leaf path, as in the keys of `trainable`.
        shape: its own shape.
        role: "scale" or "bias".
        kind: "layer" (LayerNorm) or "rms" (RMSNorm), whose statistics are taken over the axes on
            which the parameter lies; "batch", over all others; "group" (GroupNorm, InstanceNorm),
            over positions, or a part of the channels.
        axes: the activation's axes over which the statistics are taken, -1 the last.
        offset: what is added to the stored value first: 1 where a scale is kept as `w` and used as
            `1 + w`.
        layer_axes: axes of the leaf itself of which each use takes one entry: stacked layers.

    Example:
        >>> import jax
        >>> import lntune_jax as lnt
        >>> shape = jax.ShapeDtypeStruct((8,), "float32")
        >>> apply_fn = lambda params, x: jax.nn.standardize(x) * (1 + params["w"])
        >>> norm = lnt.discover_norms(apply_fn, {"w": shape}, shape).norms[0]
        >>> norm.role, norm.kind, norm.axes, norm.offset
        ('scale', 'layer', (-1,), 1.0)
    """

    path: str
    shape: tuple[int, ...]
    role: str
    kind: str
    axes: tuple[int, ...]
    offset: float = 0.0
    layer_axes: tuple[int, ...] = ()


@dataclass(frozen=True)
class DiscoveredNorms:
    """All that `discover_norms` found. `str()` gives a table.

    Iterating gives the leaf paths of LayerNorms and RMSNorms that are nothing else besides: what
    `norms=` takes everywhere in this library.

    Attributes:
        norms: a `DiscoveredNorm` for each leaf, in the tree's order, of every kind.
        ambiguous: leaf path to all its uses, of leaves that are a norm's in one place and something
            else in another (or a scale here and a bias there); not in `norms`.
        opaque: leaf path to the primitive, of leaves that go into a kernel which cannot be traced
            (Pallas, a foreign function, a callback): a norm may be in it.
        uncertain: leaf path to what it does, of leaves that may be a norm's: steps between hide
            whether the array that it multiplies, or is added to, is a normalised one.

    Example:
        >>> import jax
        >>> import lntune_jax as lnt
        >>> shape = jax.ShapeDtypeStruct((8,), "float32")
        >>> apply_fn = lambda params, x: jax.nn.standardize(x) * params["a"] + params["b"]
        >>> x = jax.ShapeDtypeStruct((2, 8), "float32")
        >>> list(lnt.discover_norms(apply_fn, {"a": shape, "b": shape}, x))
        ['a', 'b']
    """

    norms: tuple[DiscoveredNorm, ...]
    ambiguous: dict[str, tuple[str, ...]]
    opaque: dict[str, str]
    uncertain: dict[str, str]

    def __iter__(self) -> Iterator[str]:
        return (norm.path for norm in self.norms if norm.kind in _SELECTED)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __str__(self) -> str:
        rows = [("leaf", "shape", "role", "norm", "over axes", "stored")]
        rows += [_write_row(norm) for norm in self.norms]
        lines = _align(rows) if self.norms else ["no norm was found"]
        leaves = "leaf" if len(self) == 1 else "leaves"
        last = f"{len(self):,} {leaves} of LayerNorms and RMSNorms"
        return "\n".join([*lines, *self.describe_rest(), last])

    def describe_rest(self) -> list[str]:
        """A line for each leaf that is ambiguous, opaque or uncertain."""
        lines = [
            f"ambiguous: {path} is used as {', '.join(uses)}"
            for path, uses in self.ambiguous.items()
        ]
        lines += [
            f"opaque: {path} goes into {primitive}, which cannot be traced"
            for path, primitive in self.opaque.items()
        ]
        lines += [f"uncertain: {path} {how}" for path, how in self.uncertain.items()]
        return lines


def _write_row(norm: DiscoveredNorm) -> tuple[str, ...]:
    stored = [f"less {norm.offset:g}"] if norm.offset else []
    if norm.layer_axes:
        axes = ", ".join(map(str, norm.layer_axes))
        stored.append(f"layers along axis {axes}")
    return (
        norm.path,
        " x ".join(map(str, norm.shape)),
        norm.role,
        norm.kind,
        ", ".join(map(str, norm.axes)),
        ", ".join(stored),
    )


def _align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]
