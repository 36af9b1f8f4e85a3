"""Tensors that share memory, for arrays that do not.

A view shares its memory: `Cell` keeps one array for all views of it, so that a write through one is
read through the others. A `detach` is a view without gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Cell:
    """A tensor of the graph: an array of its own, or a view of another cell.

    Attributes:
        base: the cell that a view looks at.
        look: from the array of `base` to that of the view.
        is_cut: whether no gradient passes from the view to `base`.
    """

    __slots__ = ("_array", "_seen", "_version", "base", "is_cut", "look")

    def __init__(
        self, array: Any, base: Cell | None = None, look: Any = None, is_cut: bool = False
    ) -> None:
        self._array, self.base, self.is_cut = array, base, is_cut
        self.look: Any = look
        self._version = 0
        self._seen = self.version

    @property
    def version(self) -> int:
        """How often the memory was written."""
        return self._version if self.base is None else self.base.version

    def read(self) -> Any:
        """The values, with all that was written through any view."""
        if self.base is not None and self._seen != self.version:
            self._array, self._seen = self.look(self.base.read()), self.version
        return self._array

    def write(self, array: Any) -> None:
        """Puts values of the cell's own shape and dtype in its place, for all views."""
        if self.base is None:
            self._array, self._version = array, self._version + 1
            return
        whole = self.base.read()
        with jax.ensure_compile_time_eval():
            numbers = jnp.arange(whole.size).reshape(whole.shape)
            places = np.asarray(self.look(numbers, settle=False)).ravel()
        if np.array_equal(places, np.arange(whole.size)):
            new = array.reshape(whole.shape)
        else:
            new = whole.ravel().at[places].set(array.ravel()).reshape(whole.shape)
        self.base.write(keep_gradient(whole, new) if self.is_cut else new)
        if self.is_cut:  # the gradient of what was written is that of this view alone
            self._array, self._seen = array, self.version

    def turn(self, look: Callable[[Any], Any]) -> None:
        """Makes this cell a view of what it was, as `x.unsqueeze_(0)` does."""
        old = Cell(self._array, self.base, self.look, self.is_cut)
        old._version = self._version
        self._array, self.base, self.look, self.is_cut = look(old.read()), old, look, False
        self._seen = self.version


@jax.custom_jvp
def keep_gradient(old: Any, new: Any) -> Any:
    """The values of `new`, with the gradient of `old`."""
    return new


@keep_gradient.defjvp
def _differentiate(values: Any, tangents: Any) -> Any:
    return values[1], tangents[0]


def read(value: Any) -> Any:
    """The arrays of cells, in any containers."""
    if isinstance(value, Cell):
        return value.read()
    if isinstance(value, list | tuple):
        return [read(x) for x in value] if isinstance(value, list) else tuple(map(read, value))
    return {k: read(v) for k, v in value.items()} if isinstance(value, dict) else value


def freeze(value: Any) -> Any:
    """Cells of their own, without gradient."""
    if isinstance(value, Cell):
        return Cell(jax.lax.stop_gradient(value.read()))
    return [freeze(x) for x in value] if isinstance(value, list | tuple) else value
