"""One forward pass of a torch module on JAX arrays, in an environment of its own."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ...errors import LNTuningError, ModelError, TreeError
from .imports import load_torch, load_torchax
from .module import Skeleton, fill, to_array
from .output import TorchOutput

_ARRAYS = (jax.Array, np.ndarray, np.generic)
_CACHES = ("past_key_values", "cache_params")

# Warning filters and torch's generator belong to the process; a call puts both back, which two
# threads that trace at once would do in the wrong order.
_LOCK = threading.RLock()


def run(
    skeleton: Skeleton,
    params: Mapping[str, Any],
    buffers: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    key: Any,
    train: bool | None,
) -> Any:
    """Runs the module's `forward`; see `TorchModel.apply`."""
    torch, torchax = load_torch(), load_torchax()
    train = _check_mode(skeleton.module, key, train)
    _check_tensors("params", params, skeleton.params)
    _check_tensors("buffers", buffers, skeleton.buffers)
    # A new environment costs 2 ms at tracing and leaves torchax's global one as it is.
    environment = torchax.tensor.Environment()

    def to_torch(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            raise LNTuningError("apply takes JAX or NumPy arrays, not torch tensors: call .numpy()")
        is_array = isinstance(value, _ARRAYS)
        return torchax.tensor.Tensor(jax.numpy.asarray(value), environment) if is_array else value

    # torch promotes dtypes by rules of its own, which torchax leaves to JAX's standard ones.
    # Layers that draw on the host (LayerDrop at rate zero) must not advance torch's generator.
    # torch asks for int64 by name, which JAX makes int32, as it should.
    with (
        _LOCK,
        jax.numpy_dtype_promotion("standard"),
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Explicitly requested dtype .*int64", UserWarning)
        seed = jax.random.key(0) if key is None else key
        args, kwargs = jax.tree.map(to_torch, (args, kwargs))
        module = fill(skeleton, jax.tree.map(to_torch, {**params, **buffers}))
        module.train(train)
        if "use_cache" in inspect.signature(module.forward).parameters:
            kwargs.setdefault("use_cache", False)
        try:
            with environment.override_property(prng=seed), environment:
                result = module(*args, **kwargs)
        except torchax.tensor.OperatorNotFound as error:
            raise ModelError(
                f"torchax cannot run this module: {error}. Another implementation may avoid the "
                'operator: for attention, set attn_implementation="eager" in the config'
            ) from error
        return _to_jax(result, "the result")


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


def _to_jax(value: Any, where: str) -> Any:
    """A result in types that jit can return; caches are left out."""
    torch, torchax = load_torch(), load_torchax()
    if isinstance(value, torchax.tensor.Tensor | torchax.tensor.View):
        return value.jax()
    if isinstance(value, torch.Tensor):
        return to_array(where, value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return TorchOutput({n: _to_jax(v, n) for n, v in fields.items() if n not in _CACHES})
    if isinstance(value, Mapping):
        return {str(name): _to_jax(v, str(name)) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_to_jax(v, where) for v in value if not _is_cache(v))
    if _is_cache(value):
        return None
    if value is None or isinstance(value, int | float | complex):
        return value
    raise ModelError(
        f"{where} of the forward pass is a {type(value).__name__}, which jax.jit cannot return: "
        "wrap the module in one that returns tensors only"
    )


def _is_cache(value: Any) -> bool:
    caches = sys.modules.get("transformers.cache_utils")
    return caches is not None and isinstance(value, caches.Cache)
