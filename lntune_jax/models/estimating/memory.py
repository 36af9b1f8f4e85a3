"""What a training step holds on each device: by LN tuning, by LoRA, and by full fine-tuning.

Weights, gradients and optimizer state are counted from shapes. What the forward pass leaves for
the backward pass comes from the program itself: loss and gradient of the first two and the first
four layers are traced, `liveness` finds what each holds at its peak, and the difference is added
for every further layer.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lntune_jax.config import LNTuningConfig
from lntune_jax.errors import ConfigError
from lntune_jax.messages import Argument
from lntune_jax.paths import flatten
from lntune_jax.selection import partition_params, report_params
from lntune_jax.training.gradients import value_and_grad

from ..families.names import count_frozen, find_stacks, unstack
from ..families.registry import FAMILIES
from ..loss import causal_lm_loss
from ..model import PretrainedModel, assemble, from_config, shapes_of
from ..nn.attention import BY_SHAPES, find_kernel
from ..nn.quantized import count_bytes
from ..nn.skeleton import by_path, nest
from ..nn.stack import LOWER
from .liveness import peak_bytes
from .lora import add_lora, lora_shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


_FEW, _MORE = 2, 4  # layers traced


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device, and how many parameters train on all of them together.

    Attributes:
        method: "ln", "lora" or "full".
        trainable: parameters that train.
        weights: the weights in the model's dtype; what trains is there in float32 as well.
        gradients: of what trains; in full fine-tuning in the model's dtype, else in float32.
        optimizer: Adam's two moments of what trains, float32.
        activations: what all layers leave for the backward pass.
        working: what else is there at the peak: the loss, and what a single layer needs.
        gathered: with `fsdp`, the weights of one layer, or the largest table, in whole; in full
            fine-tuning its gradient too.

    Example:
        >>> from lntune_jax.models import MemoryEstimate
        >>> MemoryEstimate("ln", 8, 100, 32, 64, 500, 200, 0).total
        896
    """

    method: str
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    working: int
    gathered: int

    @property
    def total(self) -> int:
        """The sum of the bytes."""
        kept = self.weights + self.gradients + self.optimizer
        return kept + self.activations + self.working + self.gathered


def estimate_memory(
    directory_or_config: Any,
    method: str = "ln",
    *,
    task: str | None = "CAUSAL_LM",
    config: LNTuningConfig | None = None,
    dtype: Any = "bfloat16",
    batch_size: int = 1,
    length: int = 2048,
    mesh: Mapping[str, int] | None = None,
    remat: str = "none",
    attention: str = "auto",
    scan_layers: bool = False,
    rank: int = 8,
    chunk: int = 8192,
    num_labels: int | None = None,
    quantize: str | None = None,
) -> MemoryEstimate:
    """Estimate the memory of a training step with AdamW, from the config alone.

    Args:
        directory_or_config: as in `from_config`; or its result, which says by what it was made
            with what the options below say of a config.
        method: "ln", "lora" (on the query and value projections) or "full".
        task: as in `from_config`; with "CAUSAL_LM" the loss is `causal_lm_loss`.
        config: which norms train, and which modules whole; `None` for every norm. Its patterns
            decide the counts; activations are those of training every norm.
        dtype: of weights and activations.
        batch_size: rows on each device (with `tensor`, on each group of devices).
        length: tokens in a row.
        mesh: sizes of the axes "data" (copies), "fsdp" (weights, gradients and optimizer are
            spread, a layer's weights gathered for its turn) and "tensor" (heads, MLP and
            vocabulary are divided too). `None` for one device.
        remat: as in `from_config`.
        attention: as in `from_config`; of a kernel no device is needed, and "auto" is what JAX's
            default device would take.
        scan_layers: as in `from_config`; of a model `frozen_layers` counts too.
        rank: of LoRA's factors.
        chunk: as in `causal_lm_loss`.
        num_labels: as in `from_config`.
        quantize: as in `from_config`; not with the method "full", which trains the kernels.

    Raises:
        ConfigError: the method, a size or an axis is not supported, or not on a quantised base;
            LoRA is asked for in scanned layers; or an option is not what the model was made with.
        ModelError: as `from_config`; `tensor` does not divide the model.

    Example:
        >>> from transformers import LlamaConfig
        >>> from lntune_jax.models import estimate_memory
        >>> tiny = LlamaConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=3)
        >>> norms, whole = (estimate_memory(tiny, method, length=32) for method in ("ln", "full"))
        >>> norms.trainable, norms.optimizer, norms.total < whole.total / 3
        (448, 3584, True)
    """
    check_numbers(method, batch_size=batch_size, length=length, rank=rank)
    axes = dict.fromkeys(AXES, 1) | check_mesh(mesh or {})
    shards, tensor = axes["fsdp"] * axes["tensor"], axes["tensor"]
    options: dict[str, Any] = {
        "task": task,
        "dtype": dtype,
        "remat": remat,
        "attention": attention,
        "scan_layers": scan_layers,
        "quantize": quantize,
    }
    model = directory_or_config
    if isinstance(model, PretrainedModel):
        check_agreement(model, options, num_labels)
    else:
        model = from_config(model, num_labels=num_labels, **options)
    check_scanned(method, model.options.scan_layers)
    check_base(method, model.quantize)
    held = _count_held(model, method, config or LNTuningConfig(), rank)
    saved = LNTuningConfig(modules_to_save=config.modules_to_save if config else None)
    tokens = jax.ShapeDtypeStruct((batch_size, length), "int32")

    def trace(layers: int) -> tuple[int, int]:
        part = slice_model(model, layers, tensor)
        peak = _trace(part, method, saved, tokens, rank, chunk, axes["fsdp"])
        return peak, total_bytes(part.params)

    layers = model.settings.num_hidden_layers
    passed = layers if held.names is None else count_differentiated(model, held.names)
    few, (more, larger) = min(_FEW, layers), trace(min(_MORE, layers))
    base, smaller = trace(few) if few < min(_MORE, layers) else (more, larger)
    between = max(min(_MORE, layers) - few, 1)
    each = whole = max(more - base, 0) // between
    gathered = 0
    if model.options.remat == "full" and length % tensor == 0:
        each //= tensor  # a layer's input, of which a device keeps its part of the length
    if axes["fsdp"] > 1:
        largest = largest_leaf(model) // tensor
        gathered = max((larger - smaller) // between, largest) * (2 if method == "full" else 1)
    return MemoryEstimate(
        method,
        held.trainable,
        weights=held.weights // shards,
        gradients=held.gradients // shards,
        optimizer=held.optimizer // shards,
        activations=each * passed,
        working=max(base - whole * few, 0),
        gathered=gathered,
    )


class _Held(NamedTuple):
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    names: tuple[str, ...] | None = None  # of the leaves that LN tuning trains


def _count_held(model: PretrainedModel, method: str, config: LNTuningConfig, rank: int) -> _Held:
    """Count what is there for the whole step, on all devices together."""
    weights = total_bytes(model.params)
    if method == "ln":
        halves = partition_params(model.params, config, name_map=model.name_map)
        trainable = report_params(model.params, config, name_map=model.name_map).trainable
        names = tuple(halves.trainable)
        return _Held(trainable, total_bytes(halves), 4 * trainable, 8 * trainable, names)
    if method == "lora":
        trainable = _count(lora_shapes(by_path(model.params), rank))
        return _Held(trainable, weights + 4 * trainable, 4 * trainable, 8 * trainable)
    trainable = _count(model.params)
    masters = 0 if model.dtype == "float32" else 4 * trainable
    return _Held(trainable, weights + masters, weights, 8 * trainable)


def _trace(
    model: PretrainedModel,
    method: str,
    config: LNTuningConfig,
    tokens: Any,
    rank: int,
    chunk: int,
    shards: int,
) -> int:
    """The bytes at the peak of loss and gradient, beside arguments and gradients."""

    def loss(params: Any, tokens: Any) -> Any:
        return _loss(model, params, tokens, chunk)

    gradient: Callable[..., Any]
    if method == "ln":
        given: tuple[Any, ...] = tuple(
            partition_params(model.params, config, name_map=model.name_map)
        )
        gradient = value_and_grad(loss)
    elif method == "lora":
        leaves = by_path(model.params)
        given = (lora_shapes(leaves, rank), leaves)
        gradient = jax.value_and_grad(add_lora(lambda flat, x: loss(nest(flat), x), leaves, tokens))
    else:
        given, gradient = (model.params,), jax.value_and_grad(loss)
    closed = jax.make_jaxpr(gradient)(*given, tokens)
    return max(peak_bytes(closed, shards) - total_bytes(given[0]) // shards, 0)


def _loss(model: PretrainedModel, params: Any, tokens: Any, chunk: int) -> Any:
    if model.task == "CAUSAL_LM":
        return causal_lm_loss(model, params, tokens, chunk=chunk)
    output = model.apply(params, tokens)
    found = output.last_hidden_state if output.logits is None else output.logits
    assert found is not None
    exact = found.astype(jnp.float32)
    return (jax.nn.logsumexp(exact, axis=-1) - exact[..., 0]).mean()


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def total_bytes(tree: Any) -> int:
    """Give the bytes of all leaves, in whatever number of bits each is kept."""
    return sum(map(count_bytes, jax.tree.leaves(tree)))


def slice_model(model: PretrainedModel, layers: int, tensor: int) -> PretrainedModel:
    """Give the first layers of a model, as one of `tensor` devices holds them, in shapes.

    Raises:
        ModelError: the model cannot be divided so.
    """
    family = FAMILIES[model.settings.model_type]
    own = family.divide(model.settings, layers, tensor)
    attention = model.options.attention
    if attention == "auto" and "attention" in family.kind.options:
        attention = find_kernel(jax.default_backend(), own, jnp.dtype(model.dtype))
    attention = BY_SHAPES if attention in ("cudnn", "splash") else attention
    options = replace(model.options, frozen_layers=0, attention=attention)
    pooler = options.pooling in (None, "own")
    return shapes_of(assemble(own, model.task, options, pooler=pooler))


def count_differentiated(model: PretrainedModel, trainable: Iterable[str]) -> int:
    """Give how many layers the backward pass of LN tuning goes through.

    Args:
        model: perhaps with frozen layers in a stack of their own.
        trainable: the paths of what trains; a norm of the frozen stack makes all of it count.
    """
    layers = model.settings.num_hidden_layers
    if not model.options.scan_layers:
        return layers
    layout = FAMILIES[model.settings.model_type].checkpoint_names
    below = f".{layout.layers}.{LOWER}."
    if any(below in f".{path}" for path in trainable):
        return layers
    leaves = {leaf.path: leaf.value for leaf in flatten(model.params)[0]}
    return layers - count_frozen(leaves, layout)


def largest_leaf(model: PretrainedModel) -> int:
    """Give the bytes of the largest leaf, or, of a stacked one, of one layer of it."""
    leaves = {leaf.path: leaf.value for leaf in flatten(model.params)[0]}
    if model.options.scan_layers:
        settings = model.settings
        layout = FAMILIES[settings.model_type].checkpoint_names
        stacks = find_stacks(leaves, layout, settings.num_hidden_layers)
        leaves = unstack(leaves, stacks)
    return max(map(count_bytes, leaves.values()))


METHODS = ("ln", "lora", "full")

AXES = ("data", "fsdp", "tensor")


def check_mesh(mesh: Mapping[str, int]) -> dict[str, int]:
    """Check names and sizes of a mesh's axes.

    Raises:
        ConfigError: it does not say sizes of axes, an axis is not known, or a size is below 1.
    """
    if not isinstance(mesh, Mapping):
        raise ConfigError(f"mesh is {mesh!r}; expected sizes of axes, such as {{'fsdp': 8}}")
    for axis, size in mesh.items():
        if axis not in AXES:
            raise ConfigError(f"mesh has the axis {axis!r}; supported: {', '.join(AXES)}")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"mesh has {axis}={size!r}; expected an integer of at least 1")
    return dict(mesh)


def check_base(method: str, quantize: str | None) -> None:
    """Check that the method works over the base.

    Raises:
        ConfigError: it trains kernels that are quantised.
    """
    if method == "full" and quantize is not None:
        raise ConfigError(
            f"method is 'full', which trains the kernels themselves, but quantize is {quantize!r}; "
            "leave quantize out"
        )


def check_agreement(model: PretrainedModel, options: dict[str, Any], num_labels: Any) -> None:
    """Check that what is said beside a model is what the model was made with, or the default.

    Raises:
        ConfigError: another value, which could not be honoured.
    """
    defaults = inspect.signature(estimate_memory).parameters
    made = {"task": model.task, **dataclasses.asdict(model.options)}
    own = getattr(model.settings, "num_labels", None)
    for name, value in {**options, "num_labels": num_labels}.items():
        found = own if name == "num_labels" else made[name]
        same = value == found or (name == "dtype" and np.dtype(value).name == found)
        if value != defaults[name].default and not same:
            raise ConfigError(
                f"{name} is {value!r}, but the model was made with {found!r}; leave it out, or "
                "make the model with it"
            )


def check_numbers(method: str, **sizes: Any) -> None:
    """Check the method, and numbers that must be positive.

    Raises:
        ConfigError: one is not supported.
    """
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}; supported: {', '.join(map(repr, METHODS))}")
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"{name} is {size!r}; expected an integer of at least 1")


def check_scanned(method: str, scanned: bool) -> None:
    """Refuse LoRA in scanned layers, where its factors are not followed.

    Raises:
        ConfigError: both are asked for.
    """
    if scanned and method == "lora":
        raise ConfigError(
            "method is 'lora' and the layers are scanned, which the estimate does not follow; "
            "pass a model of ",
            Argument("scan_layers", False),
        )
