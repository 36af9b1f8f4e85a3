"""The parts of `gpu.py` in JAX: LN tuning by this library, LoRA, full fine-tuning.

Weights are random, drawn on the device in bfloat16, a layer at a time: nothing is ever there in
float32. The programs are compiled ahead, so that the compiler's bytes are known before a step.
"""

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import optax
from _gpu_parts import SHAPES, Shape, describe, emit, find_largest, find_peak, run_part, time_steps

import lntune_jax as lnt
from lntune_jax.models import causal_lm_loss, from_config
from lntune_jax.models.estimating.lora import add_lora, lora_shapes
from lntune_jax.models.nn.skeleton import nest
from tests.support.mesh_steps import flat

TX = optax.adamw(1e-4, weight_decay=0.0)


@partial(jax.jit, static_argnums=(1, 2))
def draw_leaf(number: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Random weights; of a stacked leaf a layer at a time."""
    key = jax.random.key(number, impl="unsafe_rbg")  # fast, with no memory beside the result

    def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        spread = 0.02 * 3**0.5
        return jax.random.uniform(key, shape, dtype, -spread, spread)

    if len(shape) < 3:
        return draw(key, shape)
    return jax.lax.map(lambda key: draw(key, shape[1:]), jax.random.split(key, shape[0]))


def draw_params(shapes: Any) -> Any:
    """All weights; those of norms are one."""

    def draw(number: int, path: Any, leaf: Any) -> jax.Array:
        if path[-1].key == "scale":
            return jnp.ones(leaf.shape, leaf.dtype)
        return draw_leaf(jnp.uint32(number), leaf.shape, leaf.dtype)

    leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    return treedef.unflatten([draw(number, *given) for number, given in enumerate(leaves)])


def make_model(shape: Shape, spec: dict, attention: str) -> Any:
    """The model, in shapes alone."""
    return from_config(
        shape.config(),
        "CAUSAL_LM",
        dtype="bfloat16",
        attention=attention,
        remat=spec.get("remat", "none"),
        scan_layers=spec.get("scan", True),
    )


def make_step(model: Any, spec: dict) -> Any:
    """`step(state, frozen, tokens) -> (state, _)`, jitted."""
    chunk = spec.get("chunk", 8192)

    def loss(params: Any, tokens: Any) -> Any:
        return causal_lm_loss(model, params, tokens, chunk=chunk)

    if spec["method"] == "ln":
        return lnt.make_train_step(loss, TX)
    if spec["method"] == "lora":
        tokens = jax.ShapeDtypeStruct((spec["batch"], spec["length"]), "int32")
        adapted = add_lora(lambda leaves, x: loss(nest(leaves), x), flat(model.params), tokens)
        gradient = jax.value_and_grad(adapted)
    else:
        gradient = jax.value_and_grad(lambda params, _, tokens: loss(params, tokens))
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, model.params)

    def step(state: Any, frozen: Any, tokens: Any) -> tuple[Any, Any]:
        trainable, moments = state
        held = trainable
        if spec.get("masters"):  # float32 ones, which the model reads in its own dtype
            held = jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), trainable, dtypes)
        value, gradients = gradient(held, frozen, tokens)
        gradients = jax.tree.map(lambda x, leaf: x.astype(leaf.dtype), gradients, trainable)
        updates, moments = TX.update(gradients, moments, trainable)
        return (optax.apply_updates(trainable, updates), moments), value

    return jax.jit(step, donate_argnums=0)


def make_state(model: Any, params: Any, spec: dict) -> tuple[Any, Any]:
    """What a step begins with, and its frozen half."""
    method = spec["method"]
    if method == "ln":
        halves = lnt.partition_params(params, lnt.LNTuningConfig(), name_map=model.name_map)
        return lnt.TrainState.create(halves.trainable, TX), halves.frozen
    if method == "full":  # as in PEFT's own benchmark, weights and moments in bfloat16 alike
        if spec.get("masters"):
            params = jax.tree.map(lambda leaf: leaf.astype("float32"), params)
        return (params, TX.init(params)), None
    frozen = flat(params)
    factors = {
        path: (jnp.full(down.shape, 0.02, down.dtype), jnp.zeros(up.shape, up.dtype))
        for path, (down, up) in lora_shapes(frozen, 8).items()
    }
    return (factors, TX.init(factors)), frozen


def compile_step(
    step: Any, state: Any, frozen: Any, tokens: Any, options: Any = None
) -> tuple[Any, float]:
    """The compiled step, and the bytes that it holds by the compiler's account."""
    compiled = step.lower(state, frozen, tokens).compile(compiler_options=options)
    found = compiled.memory_analysis()
    kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return compiled, kept + found.temp_size_in_bytes


def run_steps(compiled: Any, state: Any, frozen: Any, spec: dict, batch: int) -> float:
    """Seconds of a step; the state that was handed in is used up."""
    shape = SHAPES[spec["shape"]]
    tokens = jax.random.randint(jax.random.key(1), (batch, shape.length), 0, shape.words, "int32")
    held = [state]

    def step() -> None:
        held[0], _ = compiled(held[0], frozen, tokens)

    return time_steps(step, lambda: jax.block_until_ready(held[0]), spec["seconds"])


def read_memory() -> dict[str, float]:
    """The device's own count of bytes; nothing on a CPU."""
    found = jax.devices()[0].memory_stats() or {}
    return {
        name: found[key] / 1e9
        for name, key in (("peak_gb", "peak_bytes_in_use"), ("limit_gb", "bytes_limit"))
        if key in found
    }


def measure(spec: dict) -> None:
    """One variant: step time and memory, or the largest batch."""
    if jax.default_backend() == "cpu" and spec["shape"] != "tiny":
        raise RuntimeError("jax sees no GPU: pip install 'jax[cuda13]'")
    shape = SHAPES[spec["shape"]]
    spec = spec | {"batch": shape.batch, "length": shape.length}
    start = time.perf_counter()
    model = make_model(shape, spec, "xla")
    state, frozen = make_state(model, draw_params(model.params), spec)
    jax.block_until_ready((state, frozen))
    emit(init_seconds=time.perf_counter() - start, batch=shape.batch)
    attention = spec.get("attention", "cudnn")

    def tokens_of(batch: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, shape.length), "int32")

    while True:
        try:
            step = make_step(make_model(shape, spec, attention), spec)
            start = time.perf_counter()
            compiled, held = compile_step(step, state, frozen, tokens_of(shape.batch))
            break
        except Exception as error:
            if attention != "cudnn":
                raise
            emit(attention_note=f"no cuDNN: {describe(error)}")
            attention = "xla"
    emit(attention=attention, compile_seconds=time.perf_counter() - start, compiler_gb=held / 1e9)
    if not spec.get("largest"):
        emit(step_seconds=run_steps(compiled, state, frozen, spec, shape.batch))
        emit(**read_memory())
        return
    del compiled
    limit = read_memory().get("limit_gb", 0.01) * 1e9  # a CPU has no count: a small one is set

    def run(batch: int) -> float:
        compiled, held = compile_step(step, state, frozen, tokens_of(batch))
        if held > limit:
            raise MemoryError(f"{held / 1e9:.1f} GB by the compiler's account")
        copied = jax.tree.map(jnp.copy, state) if spec["method"] != "full" else state
        return run_steps(compiled, copied, frozen, spec, batch)

    def bytes_of(batch: int) -> float:
        return compile_step(step, state, frozen, tokens_of(batch))[1]

    find_largest(run, bytes_of, 0.98 * limit, shape.batch)


def measure_peak(spec: dict) -> None:
    """The device's name, and how fast it multiplies matrices."""
    device = jax.devices()[0]
    size = 256 if device.platform == "cpu" else 8192
    draw = jax.jit(lambda key: jax.random.normal(key, (size, size), jnp.bfloat16))
    left, right = draw(jax.random.key(0)), draw(jax.random.key(1))
    multiply = jax.jit(jnp.matmul)
    held = [left]

    def step() -> None:
        held[0] = multiply(left, right)

    seconds = time_steps(step, lambda: jax.block_until_ready(held[0]), spec["seconds"])
    measured = 2 * size**3 / seconds
    known = find_peak(device.device_kind)
    emit(
        device=device.device_kind,
        platform=device.platform,
        driver_memory_gb=read_memory().get("limit_gb"),
        datasheet_tflops=None if known is None else known / 1e12,
        measured_tflops=measured / 1e12,
    )


def main(spec: dict) -> None:
    (measure_peak if spec["method"] == "peak" else measure)(spec)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    run_part(main)
