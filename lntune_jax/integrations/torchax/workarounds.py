"""What torchax and torch.export cannot do, or do otherwise than PyTorch, and what is done instead.

All of it, and only that, is in this file. Each part names the version on which it was tried; it
can go when its test passes without it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import operator
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from ...errors import ModelError
from .backward import trace
from .module import load_torch

# --- torchax 0.0.14.dev20261026: operators that it lacks, or has wrong -----------------------


@functools.cache
def list_operators() -> dict[Any, Callable[..., Any]]:
    """Our own operators, on JAX arrays, in place of torchax's."""
    torch = load_torch()
    aten = torch.ops.aten
    return {
        # Missing.
        aten._is_all_true: lambda x: jnp.all(x),
        aten.item: lambda x: x.reshape(()),
        aten._local_scalar_dense: lambda x: x.reshape(()),
        torch.sym_ite: lambda condition, yes, no: jnp.where(condition, yes, no),
        torch.sym_not: jnp.logical_not,
        operator.and_: jnp.logical_and,
        operator.or_: jnp.logical_or,
        # `arange(end=)` and other keywords; dtypes of integers.
        aten.arange.default: lambda end, **k: _arange(0, end, 1, **k),
        aten.arange.start: lambda start, end, **k: _arange(start, end, 1, **k),
        aten.arange.start_step: lambda start, end, step=1, **k: _arange(start, end, step, **k),
        # Arguments of many kinds.
        aten.to: _cast,
        aten._to_copy: _cast,
        aten.contiguous: lambda x, **_: x,
        aten.clone: lambda x, **_: x,
        aten.alias: lambda x: x,
        aten.lift_fresh_copy: lambda x: x,
        aten.copy: lambda x, source, *_: jnp.broadcast_to(source, x.shape),
        aten.fill: lambda x, value: jnp.broadcast_to(jnp.asarray(value, x.dtype), x.shape),
        aten.zero: jnp.zeros_like,
        # A row without a key is zeros in PyTorch, NaN in torchax.
        aten.scaled_dot_product_attention: _attend,
        # Index arrays may be None, and lie apart.
        aten.index: _index,
        aten.masked_scatter: _masked_scatter,
        # Gradients where a function has a corner: zero, a bound, equal values.
        aten.abs: lambda x: jnp.where(x == 0, 0, jnp.abs(x)),
        aten.clamp: _clamp,
        aten.clamp_min: lambda x, low: _clamp(x, low),
        aten.clamp_max: lambda x, high: _clamp(x, None, high),
        aten.relu6: lambda x: _hardtanh(x, 0, 6),
        aten.hardtanh: _hardtanh,
        aten.hardsigmoid: lambda x: _hardtanh(x / 6 + 0.5, 0, 1),
        aten.hardswish: lambda x: jnp.where(x <= -3, 0, jnp.where(x >= 3, x, x * (x + 3) / 6)),
        aten.leaky_relu: lambda x, slope=0.01: jnp.where(x > 0, x, x * slope),
        aten.log_sigmoid: jax.nn.log_sigmoid,
        aten.sinc: jnp.sinc,
        aten.median.default: _median,
        aten.pow.Tensor_Scalar: _power,
        aten.linalg_vector_norm: _norm,
        aten.norm: lambda x, p=2, *args, **k: _norm(x, 2 if p is None else p, *args, **k),
        aten.cdist: lambda x, y, p=2.0, *_: _norm(x[..., :, None, :] - y[..., None, :, :], p, [-1]),
    }


def is_trusted(target: Any) -> bool:
    """Whether torchax's function for an operator is the one that its own users run.

    Those that PyTorch itself makes of others never reach torchax there; several are stale, as
    `conv2d`, whose defaults it lacks. A few are kept, since one product is better than many parts.
    """
    packet = getattr(target, "overloadpacket", target)
    return packet.__name__ in ("linear", "matmul", "reshape", "einsum") or not (
        isinstance(target, load_torch()._ops.OpOverload) and target._can_decompose()
    )


def _arange(start: Any, end: Any, step: Any, dtype: Any = None, **_: Any) -> Any:
    return jnp.arange(start, end, step, _to_dtype(dtype))


def _to_dtype(dtype: Any) -> Any:
    if dtype is None:
        return None
    return jax.dtypes.canonicalize_dtype(jnp.dtype(str(dtype).rpartition(".")[2]))


def _cast(x: Any, *args: Any, **kwargs: Any) -> Any:
    torch = load_torch()
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.dtype):
            return x.astype(_to_dtype(value))
        if isinstance(value, jax.Array):
            return x.astype(value.dtype)
    return x


def _index(x: Any, indices: Any) -> Any:
    return x[tuple(slice(None) if index is None else index for index in indices)]


def _clamp(x: Any, low: Any = None, high: Any = None) -> Any:
    """The gradient is the value's own at a bound, where JAX's `clip` halves it."""
    x = x if low is None else jnp.where(x < low, low, x)
    return x if high is None else jnp.where(x > high, high, x)


def _hardtanh(x: Any, low: Any = -1.0, high: Any = 1.0) -> Any:
    return jnp.where(x <= low, low, jnp.where(x >= high, high, x))


def _power(x: Any, exponent: Any) -> Any:
    if exponent == 0:
        return jnp.ones_like(x)
    return jnp.power(x, int(exponent) if float(exponent).is_integer() else exponent)


def _median(x: Any) -> Any:
    """All entries that are the median share its gradient."""
    value = jax.lax.stop_gradient(jnp.sort(x.ravel())[(x.size - 1) // 2])
    mean = jnp.mean(x, where=x == value)
    return value + (mean - jax.lax.stop_gradient(mean))


def _norm(x: Any, p: Any = 2, axes: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The gradient of a zero is 0 in PyTorch, NaN in JAX."""
    x = x if dtype is None else x.astype(_to_dtype(dtype))
    axes = tuple(axes) if isinstance(axes, list | tuple) and len(axes) else axes
    axes = None if isinstance(axes, list) else axes
    size = jnp.where(x == 0, 0, jnp.abs(x))
    if abs(p) == float("inf"):
        return (jnp.max if p > 0 else jnp.min)(size, axes, keepdims=keepdim)
    if p == 0:
        return jnp.sum(x != 0, axes, keepdims=keepdim).astype(size.dtype)
    if p == 1:
        return jnp.sum(size, axes, keepdims=keepdim)
    powers = jnp.sum(_power(size, p), axes, keepdims=keepdim)
    is_zero = powers == 0
    root = (
        jnp.where(is_zero, 1, powers) ** (1 / p)
        if p != 2
        else jnp.sqrt(jnp.where(is_zero, 1, powers))
    )
    return jnp.where(is_zero, 0, root)


def _masked_scatter(x: Any, mask: Any, source: Any) -> Any:
    mask = jnp.broadcast_to(mask, x.shape)
    places = jnp.cumsum(mask.ravel().astype(jnp.int32)) - 1
    values = source.ravel()[jnp.clip(places, 0, source.size - 1)].reshape(x.shape)
    return jnp.where(mask, values, x)


def _attend(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    next_key: Callable[[], Any],
) -> Any:
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (jnp.repeat(x, repeats, -3) for x in (key, value))
    if is_causal:
        mask = jnp.tri(query.shape[-2], key.shape[-2], dtype=bool)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = jnp.matmul(query, jnp.swapaxes(key, -1, -2)) * jnp.asarray(scale, query.dtype)
    dead = None
    if mask is not None and mask.dtype == bool:
        dead = ~jnp.any(mask, -1, keepdims=True)
        scores = jnp.where(mask | dead, scores, -jnp.inf)
    elif mask is not None:
        dead = jnp.all(jnp.isneginf(mask), -1, keepdims=True)
        scores = scores + jnp.where(dead, 0, mask)
    weights = jax.nn.softmax(scores, -1)
    if dead is not None:
        weights = jnp.where(dead, 0, weights)
    if dropout > 0:
        kept = jax.random.bernoulli(next_key(), 1 - dropout, weights.shape)
        weights = jnp.where(kept, weights / (1 - dropout), 0)
    return jnp.matmul(weights.astype(value.dtype), value)


# What is called with `next_key`, which draws a new random key.
NEEDS_KEY = frozenset({_attend})


# --- torch.export of torch 2.13.0: what it passes over in silence ----------------------------


@contextlib.contextmanager
def guard_tracing(module: Any) -> Iterator[None]:
    """Makes export see, or refuse, what its graph would leave out, and leaves no tracer behind."""
    torch = load_torch()
    apply = vars(torch.autograd.Function)["apply"].__func__
    transforms = importlib.import_module("torch._functorch.eager_transforms")

    def judge(cls: type, *args: Any, **kwargs: Any) -> Any:
        if "Checkpoint" in cls.__name__:
            raise ModelError(
                "forward uses torch.utils.checkpoint: call gradient_checkpointing_disable() on "
                "the module, and wrap your loss in jax.checkpoint"
            )
        # PyTorch's own, of integers, in the masks that transformers makes with vmap.
        is_own = cls.__name__.removeprefix("Vmapped" * cls.__name__.count("Vmapped")) == "ModIndex"
        return apply(cls, *args, **kwargs) if is_own else trace(cls, args)

    with (
        mock.patch.object(torch.autograd.Function, "apply", classmethod(judge)),
        mock.patch.object(torch.inference_mode, "__enter__", _enter_inference),
        mock.patch.object(torch.inference_mode, "__exit__", _exit_inference),
        mock.patch.object(torch.nn.Module, "register_full_backward_hook", _refuse_hook),
        mock.patch.object(transforms, "grad_increment_nesting", _refuse_transform),
        mock.patch.object(transforms, "jvp_increment_nesting", _refuse_transform),
        _make_guard_mode(),
        _guard_masks(),
    ):
        if any(part._backward_hooks or part._backward_pre_hooks for part in module.modules()):
            _refuse_hook()
        _clear_caches(module)
        try:
            yield
        finally:
            _clear_caches(module)


@contextlib.contextmanager
def _guard_masks() -> Iterator[None]:
    """Refuses a causal mask before attention that is not causal.

    transformers 5.23.0, Aimv2 and PaliGemma without token_type_ids: with sdpa the mask is left out
    where no token is padded, and every token is attended to; with one padded token, or in a trace,
    later tokens are masked.
    """
    masks = sys.modules.get("transformers.masking_utils")
    models = sys.modules.get("transformers.modeling_utils")
    if masks is None or models is None:
        yield
        return
    makers, attentions = masks.ALL_MASK_ATTENTION_FUNCTIONS, models.ALL_ATTENTION_FUNCTIONS
    make, attend, ignore = makers["sdpa"], attentions["sdpa"], masks._ignore_causal_mask_sdpa
    asked: list[bool] = []  # whether the mask that is made may be left out
    given: list[Any] = []  # the masks that may

    def note(*args: Any, **kwargs: Any) -> Any:
        asked.append(True)
        return ignore(*args, **kwargs)

    def make_noted(*args: Any, **kwargs: Any) -> Any:
        asked.clear()
        mask = make(*args, **kwargs)
        if asked and mask is not None:
            given.append(mask)
        return mask

    def attend_guarded(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, **rest: Any
    ) -> Any:
        is_causal = rest.get("is_causal")
        is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        known = {get_storage(x) for x in given}
        if attention_mask is not None and not is_causal and get_storage(attention_mask) in known:
            raise ModelError(
                f"{type(module).__name__} of transformers sees later tokens where no token is "
                "padded, and not where one is, which a compiled program cannot tell. Set "
                'attn_implementation="eager" in the config, which never shows them. For PaliGemma, '
                "or pass token_type_ids: 0 for the prefix, 1 for what follows"
            )
        return attend(module, query, key, value, attention_mask, **rest)

    makers["sdpa"], attentions["sdpa"] = make_noted, attend_guarded
    try:
        with mock.patch.object(masks, "_ignore_causal_mask_sdpa", note):
            yield
    finally:
        makers["sdpa"], attentions["sdpa"] = make, attend


def make_fake_mode() -> Any:
    """The mode in which tensors have no values: PyTorch has no public name for it."""
    fake = importlib.import_module("torch._subclasses.fake_tensor")
    shapes = importlib.import_module("torch.fx.experimental.symbolic_shapes")
    return fake.FakeTensorMode(shape_env=shapes.ShapeEnv(), allow_non_fake_inputs=True)


def get_storage(tensor: Any) -> int:
    """The number of a tensor's memory. What export saw under vmap has one only when unwrapped."""
    functorch = importlib.import_module("torch._C._functorch")
    while functorch.is_batchedtensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor.untyped_storage()._cdata


def _refuse_transform(*_: Any, **__: Any) -> Any:
    raise _refuse(
        "torch.func.grad, vjp or jvp",
        "write that derivative with operators of PyTorch, or take it with jax.grad around apply",
    )


def _refuse_hook(*_: Any, **__: Any) -> Any:
    raise _refuse("a backward hook on a module", "take the hook away")


def _refuse(what: str, cure: str) -> ModelError:
    return ModelError(f"forward uses {what}, which JAX would not see: {cure}")


def _enter_inference(self: Any) -> None:
    """Export does not note inference mode, whose results have no gradient either."""
    self._as_no_grad = load_torch().no_grad() if self.mode else contextlib.nullcontext()
    self._as_no_grad.__enter__()


def _exit_inference(self: Any, *error: Any) -> None:
    self._as_no_grad.__exit__(*error)


@functools.cache
def _make_guards() -> dict[Any, Callable[..., Any]]:
    torch = load_torch()

    def refuse(what: str, cure: str) -> Callable[..., Any]:
        def stop(*_: Any, **__: Any) -> Any:
            raise _refuse(what, cure)

        return stop

    tensor = torch.Tensor
    gradient = refuse("torch.autograd.grad or backward()", "take gradients with jax.grad")
    hook = refuse("register_hook", "take the hook away")
    data = refuse("an assignment to .data", "assign with torch.no_grad() and copy_()")
    # `module.to(dtype)` sets it too, of the parameters that it makes anew.
    flag = refuse(
        "requires_grad, or casts a module with .to()",
        "use detach(), or cast the module before from_torch",
    )

    def keep(x: Any, flag_value: bool = True) -> Any:
        # A new leaf's own gradient is nobody's to see; those of the params stay as they are.
        return x if flag_value else flag(x)

    values = "the values of a tensor, by .numpy() or .tolist()"
    host = refuse(values, "use operators of PyTorch, or compute that part before")
    return {
        # Export makes `x.data` a constant without values.
        tensor.data.__get__: lambda x: x.detach(),
        tensor.data.__set__: data,
        tensor.register_hook: hook,
        tensor.requires_grad_: keep,
        tensor.requires_grad.__set__: keep,
        tensor.backward: gradient,
        torch.autograd.grad: gradient,
        torch.autograd.backward: gradient,
        tensor.numpy: host,
        tensor.__array__: host,
        tensor.tolist: host,
    }


def _make_guard_mode() -> Any:
    torch, guards = load_torch(), _make_guards()

    class Guard(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            function: Any = guards.get(func, func)
            return function(*args, **(kwargs or {}))

    return Guard()


def _clear_caches(module: Any) -> None:
    """Empties the `lru_cache`s beside the module's classes, which would keep traced tensors.

    transformers 5.23.0: `get_patches_center_coordinates` of dinov3_vit, `SinePositionEmbedding`.
    """
    places = {type(part).__module__ for part in module.modules()}
    for place in map(sys.modules.get, places):
        for value in list(vars(place).values()) if place else ():
            owned = list(vars(value).values()) if isinstance(value, type) else ()
            for function in (value, *owned):
                if isinstance(function, functools._lru_cache_wrapper):
                    function.cache_clear()
