"""Runs a graph of `torch.export` on JAX arrays, with PyTorch's aliasing and its cuts of gradients.

Three things of PyTorch have no counterpart among arrays. A view shares its memory: `Cell` keeps
one array for all views of it, so that a write through one is read through the others. A `detach`
is a view without gradient. Inside `no_grad` each result is a constant, and a write changes a
value and leaves its gradient as it was. All else is operators, which torchax has in JAX.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...errors import ModelError
from .module import load_torch, load_torchax
from .workarounds import NEEDS_KEY, is_trusted, list_operators


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
        self.base.write(_keep_gradient(whole, new) if self.is_cut else new)

    def turn(self, look: Callable[[Any], Any]) -> None:
        """Makes this cell a view of what it was, as `x.unsqueeze_(0)` does."""
        old = Cell(self._array, self.base, self.look, self.is_cut)
        old._version = self._version
        self._array, self.base, self.look, self.is_cut = look(old.read()), old, look, False
        self._seen = self.version


@jax.custom_jvp
def _keep_gradient(old: Any, new: Any) -> Any:
    """The values of `new`, with the gradient of `old`."""
    return new


@_keep_gradient.defjvp
def _differentiate(values: Any, tangents: Any) -> Any:
    return values[1], tangents[0]


class Check(NamedTuple):
    """A condition on values that `forward` states, and the line where it does."""

    holds: Any
    where: str


class Interpreter:
    """One run of a graph.

    Args:
        environment: of torchax, for operators that are made of others, or draw random numbers.
        casts: whether each result is cast to PyTorch's dtype; no where params have other ones.
    """

    def __init__(self, environment: Any, casts: bool) -> None:
        self.environment, self.casts = environment, casts
        self.checks: list[Check] = []
        self.operators = list_operators()

    def run(self, graph: Any, cells: Sequence[Any], grad: bool = True) -> Any:
        """Runs a graph on cells, one for each of its inputs, and returns cells."""
        inputs, known = iter(cells), dict[Any, Any]()
        torch = load_torch()

        def get(value: Any) -> Any:
            return torch.fx.map_arg(value, known.__getitem__)

        for node in graph.graph.nodes:
            if node.op == "placeholder":
                known[node] = next(inputs)
            elif node.op == "get_attr":
                known[node] = getattr(graph, node.target)
            elif node.op == "output":
                return get(node.args[0])
            else:
                known[node] = self._call(node, get(node.args), get(node.kwargs), grad)
        raise AssertionError("a graph without an output")

    def _call(self, node: Any, args: Any, kwargs: Any, grad: bool) -> Any:
        torch, target = load_torch(), node.target
        if target is operator.getitem:
            return args[0][args[1]]
        if isinstance(target, torch._ops.HigherOrderOperator):
            return self._call_region(target.name(), args, grad)
        if not isinstance(target, torch._ops.OpOverload):  # arithmetic of numbers: `u0 >= 1`
            function: Any = self.operators.get(target, target)
            if "functorch" in getattr(target, "__module__", ""):
                raise ModelError(
                    "forward uses torch.vmap, which is not run here yet. In transformers a mask "
                    "does that that depends on token_type_ids: leave these out, or pass a ready "
                    "four-dimensional attention_mask"
                )
            if getattr(target, "__module__", "") not in ("_operator", "math", "torch"):
                raise _lacks(target, "it is no operator")
            return function(*_read(args), **_read(kwargs))
        name = target.overloadpacket.__name__
        if name == "_assert_scalar":
            self.checks.append(Check(_read(args[0]), describe_place(node)))
            return None
        if name in ("_assert_tensor_metadata", "sym_constrain_range_for_size"):
            return None  # dtypes and devices, which export itself has looked at
        if name in ("dropout", "feature_dropout", "alpha_dropout") and not args[2]:
            return args[0]  # PyTorch returns the tensor itself
        if target._schema.is_mutable:
            return self._write(node, args, kwargs, grad)
        results = self._compute(node, target, _read(args), _read(kwargs), grad)
        return self._wrap(node, args, kwargs, results, grad)

    def _call_region(self, name: str, args: Any, grad: bool) -> Any:
        """Part of the graph that runs with another setting."""
        if name == "wrap_with_set_grad_enabled":
            return self.run(args[1], args[2:], grad=args[0])
        if name == "wrap_with_autocast" and not args[2]:
            return self.run(args[4], args[5:], grad)
        cure = "cast its inputs" if "autocast" in name else "overwrite the method that has it"
        raise ModelError(f"forward uses {name}, which has no counterpart here: {cure}")

    def _wrap(self, node: Any, args: Any, kwargs: Any, results: Any, grad: bool) -> Any:
        """Cells of the results, those views that share memory with an argument."""
        flat = results if isinstance(results, tuple | list) else [results]
        outer = node.meta.get("val")
        outer = outer if isinstance(outer, tuple | list) else [outer]
        cells = []
        for index, array in enumerate(flat):
            place = _find_shared(node, outer[index]) if index < len(outer) else None
            if place is None:
                cells.append(Cell(array) if isinstance(array, jax.Array) else array)
                continue
            base = args[place]

            def look(
                whole: Any, settle: bool = True, index: int = index, place: int = place
            ) -> Any:
                own = [*_read(args[:place]), whole, *_read(args[place + 1 :])]
                if settle or _is_detach(node.target):
                    found = self._compute(node, node.target, own, _read(kwargs), grad)
                else:
                    found = self._execute(node.target, own, _read(kwargs))
                return found[index] if isinstance(found, tuple | list) else found

            is_cut = not grad or _is_detach(node.target)
            cells.append(Cell(array, base, look, is_cut))
        return cells if isinstance(results, tuple | list) else cells[0]

    def _write(self, node: Any, args: Any, kwargs: Any, grad: bool) -> Any:
        torch, target, cell = load_torch(), node.target, args[0]
        name = target.overloadpacket.__name__
        if name == "detach_":
            cell.write(jax.lax.stop_gradient(cell.read()))
            return cell
        packet = getattr(torch.ops.aten, name.replace("__i", "__").removesuffix("_"), None)
        if name.startswith("__i"):
            packet = getattr(torch.ops.aten, f"__{name[3:]}", None)
        if packet is None or not isinstance(cell, Cell):
            raise _lacks(target, "it writes in place")
        overload = getattr(packet, target._overloadname, packet)
        if not isinstance(overload, torch._ops.OpOverload) or overload._schema.is_mutable:
            overload = packet.default if "default" in packet.overloads() else packet
        rest, kwargs = _read(args[1:]), _read(kwargs)
        if torch.Tag.inplace_view in target.tags:
            cell.turn(lambda whole, **_: self._execute(overload, [whole, *rest], kwargs))
            return cell
        old = cell.read()
        new = self._execute(overload, [old, *rest], kwargs)
        new = jnp.broadcast_to(new, old.shape).astype(old.dtype)
        cell.write(new if grad else _keep_gradient(old, new))
        return cell

    def _compute(self, node: Any, target: Any, args: Any, kwargs: Any, grad: bool) -> Any:
        """The results of an operator, of PyTorch's shapes and dtypes."""
        outer = node.meta.get("val")
        if _is_detach(target):
            return jax.lax.stop_gradient(args[0])
        if any(axis < 0 for axis in _list_symbols(outer)):
            raise ModelError(
                f"a shape depends on the values of a tensor in {describe_place(node)}, which a "
                "compiled step cannot have: compute that part before, and pass its result"
            )
        results = self._execute(target, args, kwargs)
        several = isinstance(results, tuple | list)
        outer = outer if isinstance(outer, tuple | list) else [outer]
        flat = [
            self._settle(node, array, outer[i] if i < len(outer) else None)
            for i, array in enumerate(results if several else [results])
        ]
        if not grad:
            flat = [jax.lax.stop_gradient(x) if isinstance(x, jax.Array) else x for x in flat]
        return flat if several else flat[0]

    def _settle(self, node: Any, array: Any, expected: Any) -> Any:
        torch, torchax = load_torch(), load_torchax()
        if not isinstance(expected, torch.Tensor) or not hasattr(array, "shape"):
            return array
        if array.shape != tuple(expected.shape):
            raise _lacks(
                node.target, f"torchax gives {array.shape} in place of {tuple(expected.shape)}"
            )
        dtype = jax.dtypes.canonicalize_dtype(torchax.ops.mappings.t2j_dtype(expected.dtype))
        return jnp.asarray(array, dtype) if self.casts else jnp.asarray(array)

    def _execute(self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        torchax = load_torchax()
        packet = getattr(target, "overloadpacket", target)
        kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "layout", "pin_memory")}
        own = self.operators.get(target) or self.operators.get(packet)
        if own in NEEDS_KEY:
            kwargs["next_key"] = self.environment.get_and_rotate_prng_key
        if own is not None:
            return own(*args, **kwargs)
        known = torchax.ops.ops_registry.all_aten_ops
        found = known.get(target) or known.get(packet)
        try:
            if found is not None and found.is_jax_function and is_trusted(target):
                extra = {"env": self.environment} if found.needs_env else {}
                return found.func(*args, **kwargs, **extra)
            return self._decompose(target, args, kwargs)
        except torchax.tensor.OperatorNotFound as error:
            raise _lacks(target, str(error)) from error
        except (ModelError, jax.errors.JAXTypeError, jax.errors.JAXIndexError):
            raise
        except Exception as error:  # a gap of torchax: an argument that it does not know
            raise _lacks(target, f"{type(error).__name__}: {error}") from error

    def _decompose(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Lets PyTorch take an operator apart into those that torchax has."""
        torch, torchax = load_torch(), load_torchax()

        def to_torch(x: Any) -> Any:
            is_array = isinstance(x, jax.Array | np.ndarray)
            return torchax.tensor.Tensor(jnp.asarray(x), self.environment) if is_array else x

        def to_jax(x: Any) -> Any:
            if isinstance(x, torchax.tensor.Tensor | torchax.tensor.View):
                return x.jax()
            return jnp.asarray(x.numpy()) if isinstance(x, torch.Tensor) else x

        args, kwargs = jax.tree.map(to_torch, (list(args), dict(kwargs)))
        with self.environment._dispatch_mode:  # the function mode would skip PyTorch's own parts
            results = target(*args, **kwargs)
        is_tensor = lambda x: isinstance(x, torch.Tensor)  # noqa: E731
        return jax.tree.map(to_jax, results, is_leaf=is_tensor)


def describe_place(node: Any) -> str:
    """The line of Python that a node of a graph comes from."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").strip().splitlines()]
    for place, line in zip(lines[-2::-1], lines[::-1], strict=False):
        if place.startswith("File "):
            file, number, *_ = place.split(", ")
            return f"{file.strip('File ').strip(chr(34)).rpartition('/')[2]}, {number}: `{line}`"
    return f"the operator {node.target}"


def _read(value: Any) -> Any:
    if isinstance(value, Cell):
        return value.read()
    if isinstance(value, list | tuple):
        return [_read(x) for x in value] if isinstance(value, list) else tuple(map(_read, value))
    return {k: _read(v) for k, v in value.items()} if isinstance(value, dict) else value


def _find_shared(node: Any, result: Any) -> int | None:
    """The place of the argument whose memory a result shares, by what export has seen."""
    torch = load_torch()
    if not isinstance(result, torch.Tensor):
        return None
    own = result.untyped_storage()._cdata
    for place, argument in enumerate(node.args):
        value: Any = argument.meta.get("val") if isinstance(argument, torch.fx.Node) else None
        if isinstance(value, torch.Tensor) and value.untyped_storage()._cdata == own:
            return place
    return None


def _list_symbols(values: Any) -> list[int]:
    """-1 for each axis whose length is not known before the run."""
    torch = load_torch()
    values = values if isinstance(values, tuple | list) else [values]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return [-1 for value in tensors for axis in value.shape if not isinstance(axis, int)]


def _is_detach(target: Any) -> bool:
    return target in (
        load_torch().ops.aten.detach.default,
        load_torch().ops.aten.detach_copy.default,
    )


def _lacks(target: Any, reason: str) -> ModelError:
    cure = "set an option of the config that avoids it, or overwrite the method that uses it"
    if "attention" in str(target):
        cure = 'set attn_implementation="eager" in the config'
    return ModelError(f"torchax cannot run this module: {target} ({reason}). To avoid it, {cure}")
