"""One forward pass of a torch module on JAX arrays, by a graph of `torch.export`.

The graph is made once for each kind of arguments, then kept. Export runs the module's Python code
on tensors without values. What needs values, or what the graph would not show, is refused here.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ...errors import LNTuningError, ModelError, TreeError
from .graph import Check, Interpreter
from .memory import Cell
from .module import Skeleton, TorchOutput, fill, load_torch, load_torchax, to_numpy
from .workarounds import guard_tracing, make_fake_mode

_ARRAYS = (jax.Array, np.ndarray, np.generic)
_KEPT_PROGRAMS = 32
_CACHES = ("past_key_values", "cache_params")
_PLACES = (f"{os.sep}torch{os.sep}", f"integrations{os.sep}torchax", f"{os.sep}contextlib.py")

# Warning filters and torch's generator belong to the process; a call puts both back, which two
# threads that trace at once would do in the wrong order.
_LOCK = threading.RLock()


def run(
    skeleton: Skeleton,
    programs: dict[Any, Program],
    params: Mapping[str, Any],
    buffers: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    key: Any,
    train: bool | None,
) -> Any:
    """Runs the module's `forward`; see `TorchModel.apply`.

    Args:
        skeleton: the module.
        programs: the graphs made so far, by the kind of arguments; a new one is put in.
        params: its parameters.
        buffers: its other tensors.
        args: of `forward`.
        kwargs: of `forward`.
        key: a random key, or None.
        train: training mode or not; None for whether there is a key.
    """
    torch, torchax = load_torch(), load_torchax()
    with jax.ensure_compile_time_eval():  # it is made at the first use, with a random key
        torchax.default_env()
    train = _check_mode(skeleton.module, key, train)
    _check_tensors("params", params, skeleton.params)
    _check_tensors("buffers", buffers, skeleton.buffers)
    kwargs = dict(kwargs)
    if "use_cache" in inspect.signature(skeleton.module.forward).parameters:
        kwargs.setdefault("use_cache", False)
    # torch promotes dtypes by rules of its own, which torchax leaves to JAX's standard ones.
    # torch asks for int64 by name, which JAX makes int32, as it should.
    with (
        _LOCK,
        jax.numpy_dtype_promotion("standard"),
        torch.random.fork_rng(devices=[]),
        torchax.disable_temporarily(),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Explicitly requested dtype .*int64", UserWarning)
        given, structure = jax.tree.flatten((args, kwargs))
        given = [_to_argument(value) for value in given]
        program = _find_program(skeleton, programs, given, structure, train)
        weights = [{**params, **buffers}[name] for name in (*skeleton.params, *skeleton.buffers)]
        arrays = [jnp.asarray(x) for x in (*weights, *given) if isinstance(x, _ARRAYS)]
        own = iter(arrays)
        cells = [Cell(next(own) if c is None else jnp.asarray(c)) for c in program.constants]
        environment = torchax.tensor.Environment()
        seed = jax.random.key(0) if key is None else key
        casts = _has_own_dtypes(skeleton, params, buffers)
        interpreter = Interpreter(environment, casts, draws=key is not None)
        with environment.override_property(prng=seed):
            results = interpreter.run(program.graph, cells)
        tensors = iter(_apply_checks([x.read() for x in results], interpreter.checks))
        leaves = [next(tensors) if value is None else value for value in program.values]
        return program.structure.unflatten(leaves)


def _to_argument(value: Any) -> Any:
    if isinstance(value, load_torch().Tensor):
        raise LNTuningError("apply takes JAX or NumPy arrays, not torch tensors: call .numpy()")
    return jnp.asarray(value) if isinstance(value, _ARRAYS) else value


def _find_program(
    skeleton: Skeleton, programs: dict[Any, Program], given: list[Any], structure: Any, train: bool
) -> Program:
    """The graph for arguments of these shapes, dtypes and plain values."""
    slots = [Slot(x.shape, str(x.dtype)) if isinstance(x, jax.Array) else x for x in given]
    kind = (structure, tuple((type(x), x) for x in slots), train, has_64_bits())
    try:
        known = programs.get(kind)
    except TypeError:  # a value that cannot be hashed
        return export(skeleton, slots, structure, train)
    if known is None:
        known = export(skeleton, slots, structure, train)
        while len(programs) >= _KEPT_PROGRAMS:
            programs.pop(next(iter(programs)))
        programs[kind] = known
    return known


def _has_own_dtypes(skeleton: Skeleton, *values: Mapping[str, Any]) -> bool:
    """Whether all weights have the module's dtypes, so that PyTorch's dtypes hold throughout."""
    expected = {**skeleton.params, **skeleton.buffers}
    return all(
        jnp.asarray(value).dtype
        == jax.dtypes.canonicalize_dtype(jnp.dtype(str(expected[name].dtype).rpartition(".")[2]))
        for group in values
        for name, value in group.items()
    )


def _apply_checks(arrays: list[Any], checks: list[Check]) -> list[Any]:
    """Raises where a check of `forward` fails; makes NaN of the results where jit hides that."""
    for check in checks:
        holds = jnp.all(jnp.asarray(check.holds))
        if isinstance(holds, Tracer):
            arrays = [
                jnp.where(holds, x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.inexact) else x
                for x in arrays
            ]
        elif not holds:
            raise ModelError(
                f"a check in its forward fails for these values, in {check.where}: see there what "
                "the arguments must fulfil"
            )
    return arrays


def _check_mode(module: Any, key: Any, train: bool | None) -> bool:
    if key is not None and not isinstance(key, _ARRAYS):
        raise LNTuningError(f"key must be a JAX random key, jax.random.key(0), not {key!r}")
    if train is None:
        train = key is not None
    if train and key is None:
        raise LNTuningError("train=True needs a random key for dropout: key=jax.random.key(0)")
    if train:
        _check_host_draws(getattr(module, "config", None))
    return train


def _check_host_draws(config: Any) -> None:
    """Raises where training draws with Python or NumPy, which a compiled step would freeze."""
    settings = vars(config) if hasattr(config, "__dict__") else {}
    drops = [name for name, value in settings.items() if name.endswith("layerdrop") and value]
    masks = [name for name in ("mask_time_prob", "mask_feature_prob") if settings.get(name)]
    frozen = drops + (masks if settings.get("apply_spec_augment") else [])
    if frozen:
        raise LNTuningError(
            f"the config has {', '.join(f'{name}={settings[name]}' for name in frozen)}: torch "
            "draws that on the host, and a compiled step would repeat one draw for ever. Set "
            f"{frozen[0]}=0.0 in the config, or pass train=False"
        )


def _check_tensors(what: str, values: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    if not isinstance(values, Mapping):
        raise TreeError(f"{what} must be a dict of dotted names, not {type(values).__name__}")
    missing = [name for name in expected if name not in values]
    unexpected = [name for name in values if name not in expected]
    if missing or unexpected:
        parts = [("missing", missing), ("unexpected", unexpected)]
        listed = ", ".join(f"{word} {_shorten(names)}" for word, names in parts if names)
        raise TreeError(
            f"{what} does not fit the module: {listed}. Pass the model's own {what}, or "
            "merge_params(trainable, frozen)"
        )
    for name, value in values.items():
        if not isinstance(value, _ARRAYS):
            raise TreeError(
                f"{what}[{name!r}] is no array but a {type(value).__name__}: pass "
                "merge_params(trainable, frozen)"
            )
        if value.shape != tuple(expected[name].shape):
            raise TreeError(
                f"{what}[{name!r}] has shape {value.shape}, but the module's is "
                f"{tuple(expected[name].shape)}"
            )


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{names[:5]}{more}"


class Program(NamedTuple):
    """A graph, and what is needed to run it.

    Attributes:
        graph: of PyTorch's operators, as export gives it; writes and views are in it.
        constants: for each input of the graph an array, or None where it is a tensor given.
        structure: of the result.
        values: for each leaf of the result a plain Python value, or None where it is a tensor.
    """

    graph: Any
    constants: list[np.ndarray | None]
    structure: Any
    values: list[Any]


class Slot(NamedTuple):
    """The place of an array among the arguments."""

    shape: tuple[int, ...]
    dtype: str


def export(skeleton: Skeleton, given: Sequence[Any], structure: Any, train: bool) -> Program:
    """Runs `forward` on tensors without values, and keeps the operators that it calls.

    Args:
        skeleton: the module.
        given: the leaves of `(args, kwargs)`, with a `Slot` in the place of each array.
        structure: of `(args, kwargs)`.
        train: training mode or not.

    Raises:
        ModelError: `forward` needs values, uses what a graph does not show, or raises an error.
    """
    torch = load_torch()

    def is_slot(value: Any) -> bool:
        return isinstance(value, Slot)

    tensors = {**skeleton.params, **skeleton.buffers}
    result: list[Any] = []

    class Call(torch.nn.Module):
        def forward(self, weights: list[Any], arrays: list[Any]) -> list[Any]:
            module = fill(skeleton, dict(zip(tensors, weights, strict=True)))
            module.train(train)
            own = iter(arrays)
            args, kwargs = structure.unflatten(next(own) if is_slot(x) else x for x in given)
            with guard_tracing(module):
                output = to_tree(module(*args, **kwargs), "the result")
            leaves, tree = jax.tree.flatten(output)
            is_tensor = [isinstance(leaf, torch.Tensor) for leaf in leaves]
            values = [None if t else leaf for t, leaf in zip(is_tensor, leaves, strict=True)]
            result[:] = [tree, values]
            return [leaf for t, leaf in zip(is_tensor, leaves, strict=True) if t]

    with make_fake_mode():
        weights = [torch.empty(tuple(t.shape), dtype=t.dtype) for t in tensors.values()]
        arrays = [torch.empty(x.shape, dtype=_to_torch_dtype(x.dtype)) for x in given if is_slot(x)]
    level = logging.root.manager.disable
    with load_torchax().disable_temporarily(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)  # a failed export writes the whole graph there
        try:
            program = torch.export.export(Call(), (weights, arrays), strict=False)
        except Exception as error:  # whatever the module's own code raises
            raise _explain(error) from error
        finally:
            logging.disable(level)
    return Program(program.graph_module, _list_constants(program), *result)


def has_64_bits() -> bool:
    """Whether JAX has 64-bit numbers on."""
    return jax.dtypes.canonicalize_dtype("int64") == "int64"


def _to_torch_dtype(name: str) -> Any:
    """The dtype that the module's code expects: PyTorch's int64 is int32 in JAX without 64 bits."""
    wide = {} if has_64_bits() else {"int32": "int64"}
    return getattr(load_torch(), wide.get(name, name))


def _list_constants(program: Any) -> list[np.ndarray | None]:
    constants: list[np.ndarray | None] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            constants.append(None)
            continue
        value = program.constants.get(spec.target)
        if value is None:
            value = program.state_dict.get(spec.target)
        if type(value) not in (load_torch().Tensor, load_torch().nn.Parameter):
            raise ModelError(
                f"forward makes a tensor, {spec.target!r}, in a way that torch.export does not "
                "follow: make it in the module's __init__, or with operators of PyTorch"
            )
        constants.append(to_numpy(value))
    return constants


def _explain(error: Exception) -> ModelError:
    """The error of an export in words of ours: what was asked of a tensor, and where."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for link in chain:
        if isinstance(link, LNTuningError):
            return ModelError(str(link))
    where = _find_place(chain)
    names = " ".join(type(link).__name__ for link in chain)
    if any(word in names for word in ("DataDependent", "DynamicOutputShape", "Unbacked")) or (
        "data-dependent" in str(error).lower()
    ):
        return ModelError(
            f"forward depends on the values of a tensor, in {where}: a compiled program cannot. "
            "Leave out the argument or the option that leads "
            "there, or overwrite that method with one that uses torch.where"
        )
    first = (str(error).strip().splitlines() or [""])[0]
    return ModelError(
        f"forward raises {type(error).__name__}: {first} (in {where}). torch.export runs it on "
        "tensors without values, of the shapes and dtypes that you passed: check these, and that "
        "the module runs in PyTorch"
    )


def _find_place(chain: Sequence[BaseException]) -> str:
    """The line of the module's own code, or of transformers', that an error comes from."""
    for link in reversed(chain):
        for frame in reversed(traceback.extract_tb(link.__traceback__)):
            if not any(place in frame.filename for place in _PLACES):
                name = frame.filename.rpartition(os.sep)[2]
                return f"{name}, line {frame.lineno}: `{frame.line}`"
    return "forward"


def to_tree(value: Any, where: str) -> Any:
    """A result as a tree that jit can return, its tensors as they are; caches are left out."""
    torch = load_torch()
    if isinstance(value, torch.Tensor) or value is None or type(value) in (bool, int, float):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return TorchOutput({n: to_tree(v, n) for n, v in fields.items() if n not in _CACHES})
    if isinstance(value, Mapping):
        return {str(name): to_tree(v, str(name)) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(to_tree(v, where) for v in value if not _is_cache(v))
    if _is_cache(value):
        return None
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        raise ModelError(f"{where} of the forward pass depends on the values of a tensor")
    if isinstance(value, complex):
        return value
    raise ModelError(
        f"{where} of the forward pass is a {type(value).__name__}, which jax.jit cannot return: "
        "wrap the module in one that returns tensors only"
    )


def _is_cache(value: Any) -> bool:
    caches = sys.modules.get("transformers.cache_utils")
    return caches is not None and isinstance(value, caches.Cache)
