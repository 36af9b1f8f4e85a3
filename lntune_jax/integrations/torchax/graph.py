"""Runs a graph of `torch.export` on JAX arrays, with PyTorch's aliasing and its cuts of gradients.

Inside `no_grad` each result is a constant, and a write changes a value and leaves its gradient as
it was. What `torch.vmap` made is run by `jax.vmap`, and the backward of a `torch.autograd.Function`
where JAX asks for it. All else is operators, which torchax has in JAX.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...errors import ModelError
from .backward import attach, get_operators
from .memory import Cell, freeze, keep_gradient, read
from .module import load_torch, load_torchax
from .workarounds import NEEDS_KEY, get_storage, is_trusted, list_operators

# Arguments that say where a tensor lies.
_PLACES = ("device", "layout", "pin_memory")


class Check(NamedTuple):
    """A condition on values that `forward` states, and the line where it does."""

    holds: Any
    where: str


class Interpreter:
    """One run of a graph.

    Args:
        environment: of torchax, for operators that are made of others, or draw random numbers.
        casts: whether each result is cast to PyTorch's dtype; no where params have other ones.
        draws: whether there is a key to draw random numbers from.
    """

    def __init__(self, environment: Any, casts: bool, draws: bool) -> None:
        self.environment, self.casts, self.draws = environment, casts, draws
        self.checks: list[Check] = []
        self.operators = list_operators()
        for target, function in self.operators.items():  # for parts of other operators as well
            if "torch._ops" in type(target).__module__ and function not in NEEDS_KEY:
                environment.override_op_definition(target, self._wrap_function(function))

    def run(self, graph: Any, cells: Sequence[Any], grad: bool = True) -> Any:
        """Runs a graph on cells, one for each of its inputs, and returns cells."""
        *nodes, output = graph.graph.nodes
        inputs, known = iter(cells), dict[Any, Any]()
        for node in nodes:
            if node.op == "placeholder":
                known[node] = next(inputs)
            elif node.op == "get_attr":
                known[node] = getattr(graph, node.target)
        self._run_nodes([n for n in nodes if n.op == "call_function"], known, grad)
        return _look_up(output.args[0], known)

    def _run_nodes(self, nodes: Sequence[Any], known: dict[Any, Any], grad: bool) -> None:
        """Calls operators one after the other, and puts their results into `known`."""
        left, late = iter(nodes), dict[Any, None]()
        grad_of, join = get_operators()
        for node in left:
            if _get_name(node) == "_vmap_increment_nesting":
                self._map(node, list(_take_region(left)), known, grad)
            elif node.target is join and not late.keys() & _list_nodes(node.args[0]):
                known[node] = self._join(node, list(late), known)
                late.clear()
            elif node.target is grad_of or late.keys() & set(node.all_input_nodes):
                late[node] = None  # part of a backward: it waits for the gradient
            elif _get_name(node) != "lazy_load_decompositions":
                args, kwargs = (_look_up(x, known) for x in (node.args, node.kwargs))
                known[node] = self._call(node, args, kwargs, grad)

    def _join(self, node: Any, late: list[Any], known: Mapping[Any, Any]) -> list[Cell]:
        """The results of a Function, whose backward is the nodes in `late`."""
        results, stand_ins, inputs, found = node.args
        values, arrays = (read(_look_up(list(part), known)) for part in (results, inputs))
        held = {n: freeze(value) for n, value in known.items()}

        def compute(grads: list[Any]) -> list[Any]:
            inner = held | {n: Cell(g) for n, g in zip(stand_ins, grads, strict=True)}
            self._run_nodes([n for n in late if n not in stand_ins], inner, grad=True)
            made = read(_look_up(list(found), inner))
            return [
                jnp.asarray(g, x.dtype).reshape(x.shape) for g, x in zip(made, arrays, strict=True)
            ]

        return list(map(Cell, attach(values, arrays, compute)))

    def _map(self, enter: Any, nodes: list[Any], known: dict[Any, Any], grad: bool) -> None:
        """Runs the part of a graph that `torch.vmap` made, by `jax.vmap`."""
        given = [n for n in nodes if _get_name(n) == "_add_batch_dim"]
        level = given[0].args[2]
        given = [n for n in given if n.args[2] == level]
        made = [n for n in nodes if _get_name(n) == "_remove_batch_dim" and n.args[1] == level]
        outside = [cell for cell in known.values() if isinstance(cell, Cell)]
        versions = [cell.version for cell in outside]

        def compute(*arrays: Any) -> list[Any]:
            inner = known | {n: Cell(array) for n, array in zip(given, arrays, strict=True)}
            self._run_nodes([n for n in nodes if n not in given and n not in made], inner, grad)
            return [read(_look_up(n.args[0], inner)) for n in made]

        arrays = [read(_look_up(n.args[0], known)) for n in given]
        into, out = [n.args[1] for n in given], [n.args[3] for n in made]
        results = jax.vmap(compute, into, out, axis_size=enter.args[0])(*arrays)
        if versions != [cell.version for cell in outside]:
            raise ModelError(
                "a function under torch.vmap writes into a tensor from outside: let it return the "
                f"values, and write after (in {describe_place(enter)})"
            )
        known.update({n: Cell(array) for n, array in zip(made, results, strict=True)})

    def _call(self, node: Any, args: Any, kwargs: Any, grad: bool) -> Any:
        torch, target = load_torch(), node.target
        if target is operator.getitem:
            return args[0][args[1]]
        if isinstance(target, torch._ops.HigherOrderOperator):
            return self._call_region(target.name(), args, grad)
        if not isinstance(target, torch._ops.OpOverload):  # arithmetic of numbers: `u0 >= 1`
            function: Any = self.operators.get(target, target)
            if getattr(target, "__module__", "") not in ("_operator", "math", "torch"):
                raise _lacks(target, "it is no operator")
            return function(*read(args), **read(kwargs))
        name = target.overloadpacket.__name__
        if name == "_assert_scalar":
            self.checks.append(Check(read(args[0]), describe_place(node)))
            return None
        if name in ("_assert_tensor_metadata", "sym_constrain_range_for_size"):
            return None  # dtypes and devices, which export itself has looked at
        if name in ("dropout", "feature_dropout", "alpha_dropout") and not args[2]:
            return args[0]  # PyTorch returns the tensor itself
        is_random = torch.Tag.nondeterministic_seeded in target.tags
        if is_random and not self.draws and name not in ("scaled_dot_product_attention", "rrelu"):
            raise ModelError(
                f"forward draws random numbers, in {describe_place(node)}: pass key=, a new one in "
                "each call, and train=False to stay in evaluation mode. Or pass the argument that "
                "takes their place, if there is one"
            )
        if target._schema.is_mutable:
            return self._write(node, args, kwargs, grad)
        results = self._compute(node, target, read(args), read(kwargs), grad)
        return self._wrap(node, args, kwargs, results, grad)

    def _call_region(self, name: str, args: Any, grad: bool) -> Any:
        """Part of the graph that runs with another setting."""
        if name == "wrap_with_set_grad_enabled":
            return self.run(args[1], args[2:], grad=args[0])
        if name == "wrap_with_autocast" and not args[2]:
            return self.run(args[4], args[5:], grad)
        if name == "flat_apply" and args[2].endswith(".ModIndex"):  # in masks under vmap
            values, *places = read(args[3:])
            return Cell(self._execute(load_torch().ops.aten.index.Tensor, [values, places], {}))
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
                own = [*read(args[:place]), whole, *read(args[place + 1 :])]
                if settle or _is_detach(node.target):
                    found = self._compute(node, node.target, own, read(kwargs), grad)
                else:
                    found = self._execute(node.target, own, read(kwargs))
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
        rest, kwargs = read(args[1:]), read(kwargs)
        if torch.Tag.inplace_view in target.tags:
            cell.turn(lambda whole, **_: self._execute(overload, [whole, *rest], kwargs))
            return cell
        old = cell.read()
        new = self._execute(overload, [old, *rest], kwargs)
        new = jnp.broadcast_to(new, old.shape).astype(old.dtype)
        cell.write(new if grad else keep_gradient(old, new))
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
        kwargs = {k: v for k, v in kwargs.items() if k not in _PLACES}
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
        args, kwargs = jax.tree.map(self._to_torch, (list(args), dict(kwargs)))
        with self.environment._dispatch_mode:  # the function mode would skip PyTorch's own parts
            return _to_jax(target(*args, **kwargs))

    def _to_torch(self, x: Any) -> Any:
        is_array = isinstance(x, jax.Array | np.ndarray)
        return load_torchax().tensor.Tensor(jnp.asarray(x), self.environment) if is_array else x

    def _wrap_function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Of arrays, as one of torchax's tensors."""

        def call(*args: Any, **kwargs: Any) -> Any:
            kwargs = {k: v for k, v in kwargs.items() if k not in _PLACES}
            result = function(*_to_jax(args), **_to_jax(kwargs))
            return jax.tree.map(self._to_torch, result)

        return call


def _to_jax(values: Any) -> Any:
    torch, torchax = load_torch(), load_torchax()

    def convert(x: Any) -> Any:
        if isinstance(x, torchax.tensor.Tensor | torchax.tensor.View):
            return x.jax()
        return jnp.asarray(x.numpy()) if isinstance(x, torch.Tensor) else x

    return jax.tree.map(convert, values, is_leaf=lambda x: isinstance(x, torch.Tensor))


def describe_place(node: Any) -> str:
    """The line of Python that a node of a graph comes from."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").strip().splitlines()]
    for place, line in zip(lines[-2::-1], lines[::-1], strict=False):
        if place.startswith("File ") and "integrations/torchax" not in place:
            file, number, *_ = place.split(", ")
            return f"{file.strip('File ').strip(chr(34)).rpartition('/')[2]}, {number}: `{line}`"
    return f"the operator {node.target}"


def _get_name(node: Any) -> str:
    return getattr(node.target, "__name__", "")


def _list_nodes(values: Any) -> set[Any]:
    found: list[Any] = []
    load_torch().fx.map_arg(values, found.append)
    return set(found)


def _look_up(value: Any, known: Mapping[Any, Any]) -> Any:
    return load_torch().fx.map_arg(value, known.__getitem__)


def _take_region(nodes: Iterator[Any]) -> Iterator[Any]:
    """The nodes up to the end of the `torch.vmap` that has just begun."""
    depth = 1
    for node in nodes:
        depth += (_get_name(node) == "_vmap_increment_nesting") - (
            _get_name(node) == "_vmap_decrement_nesting"
        )
        if not depth:
            return
        yield node


def _find_shared(node: Any, result: Any) -> int | None:
    """The place of the argument whose memory a result shares, by what export has seen."""
    torch = load_torch()
    if not isinstance(result, torch.Tensor):
        return None
    own = get_storage(result)
    for place, argument in enumerate(node.args):
        value: Any = argument.meta.get("val") if isinstance(argument, torch.fx.Node) else None
        if isinstance(value, torch.Tensor) and get_storage(value) == own:
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
