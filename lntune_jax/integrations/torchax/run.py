"""One forward pass of a torch module on JAX arrays, in an environment of its own."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ...errors import LNTuningError, ModelError, TreeError
from .export import Program, Slot, export, has_64_bits
from .graph import Cell, Check, Interpreter
from .imports import load_torch, load_torchax
from .module import Skeleton

_ARRAYS = (jax.Array, np.ndarray, np.generic)
_KEPT_PROGRAMS = 32

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
        interpreter = Interpreter(environment, _has_own_dtypes(skeleton, params, buffers))
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
