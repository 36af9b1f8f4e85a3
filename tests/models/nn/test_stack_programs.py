"""What a compiled step of a scanned model computes and holds, counted in products and bytes."""

from __future__ import annotations

import jax
import pytest

import lntune_jax as lnt
from lntune_jax.errors import ConfigError
from lntune_jax.models import causal_lm_loss, estimate_memory, from_config
from tests.support.step_memory import TINY, compile_step

# No other product has the shape of a kernel.
TOKENS = jax.ShapeDtypeStruct((3, 24), "int32")
LLAMA = TINY | {"hidden_size": 136, "head_dim": 34, "num_hidden_layers": 4}
GEMMA2 = LLAMA | {"model_type": "gemma2", "sliding_window": 16}


def trace(model, whole: bool = False):
    """The program of loss and gradient, by the norms or by all weights."""

    def loss(params, tokens):
        return causal_lm_loss(model, params, tokens, chunk=512)

    if whole:
        return jax.make_jaxpr(jax.grad(loss))(model.params, TOKENS).jaxpr
    halves = lnt.partition_params(model.params, lnt.LNTuningConfig())
    return jax.make_jaxpr(lnt.value_and_grad(loss))(*halves, TOKENS).jaxpr


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def products(jaxpr) -> list[tuple[int, ...]]:
    return [e.outvars[0].aval.shape for e in equations(jaxpr) if e.primitive.name == "dot_general"]


def kernels(model) -> set[tuple[int, ...]]:
    """Shapes of one layer's kernels, either way round."""
    leaves = jax.tree.leaves(model.params["model"]["layers"])
    shapes = {leaf.shape[1:] for leaf in leaves if leaf.ndim == 3}
    return shapes | {shape[::-1] for shape in shapes}


@pytest.mark.parametrize("config", [LLAMA, GEMMA2], ids=["llama", "gemma2"])
@pytest.mark.parametrize("remat", ["none", "dots_with_no_batch_dims_saveable", "full"])
def test_no_weight_gradient_is_computed_and_no_weight_stored(config, remat):
    """No product of a layer has a kernel's shape, and no loop gives out a stack of kernels."""
    model = from_config(config, "CAUSAL_LM", scan_layers=True, remat=remat)
    program, shapes = trace(model), kernels(model)
    assert not shapes & set(products(program))
    assert shapes & set(products(trace(model, whole=True)))  # where they would be seen
    written = [
        variable.aval.shape[1:]
        for equation in equations(program)
        if equation.primitive.name == "scan"
        for variable in equation.outvars
        if variable.aval.ndim == 3
    ]
    assert not shapes & set(written)


def test_one_layer_is_traced_whatever_their_number():
    counts = [
        len(
            products(
                trace(
                    from_config(
                        GEMMA2 | {"num_hidden_layers": layers}, "CAUSAL_LM", scan_layers=scanned
                    )
                )
            )
        )
        for scanned, layers in ((True, 3), (True, 6), (False, 3), (False, 6))
    ]
    assert counts[0] == counts[1]
    assert counts[1] < counts[2] < counts[3]


def temporaries(layers: int, wide: int) -> int:
    config = TINY | {"num_hidden_layers": layers, "intermediate_size": wide}
    model = from_config(config, "CAUSAL_LM", scan_layers=True, remat="full")
    halves = lnt.partition_params(model.params, lnt.LNTuningConfig())

    def loss(params, tokens):
        return causal_lm_loss(model, params, tokens, chunk=512)

    step = jax.jit(lnt.value_and_grad(loss)).lower(*halves, TOKENS)
    return step.compile().memory_analysis().temp_size_in_bytes


def test_frozen_stacks_are_not_copied():
    """With more layers there are their inputs more, and no weights, in the temporaries."""
    few, many = temporaries(4, 1024), temporaries(12, 1024)
    layer = 4 * (3 * 128 * 1024 + 2 * 128 * 128 + 2 * 128 * 64)
    states = 4 * 3 * 24 * 128
    print(f"{few:,} {many:,} bytes; a layer's weights {layer:,}, its input {states:,}")
    assert many - few <= 8 * states + 8 * 4 * 1024
    assert 8 * states < layer


@pytest.mark.parametrize(("method", "remat"), [("ln", "none"), ("full", "full")])
def test_the_estimate_is_near_the_compiler_s(method, remat):
    model = from_config(TINY, "CAUSAL_LM", scan_layers=True, remat=remat)
    tokens = jax.ShapeDtypeStruct((4, 128), "int32")
    found = compile_step(model, method, tokens)
    estimate = estimate_memory(model, method, batch_size=4, length=128, remat=remat).total
    print(
        f"{method} {remat}: compiler {found:,}, estimate {estimate:,}, {estimate / found - 1:+.1%}"
    )
    assert abs(estimate / found - 1) < 0.1


def test_what_the_estimate_says_of_scanned_layers():
    apart, scanned = (estimate_memory(TINY, length=64, scan_layers=scan) for scan in (False, True))
    assert (apart.trainable, apart.weights) == (scanned.trainable, scanned.weights)
    # A layer's weights, or the largest table, are gathered: not a whole stack.
    apart, scanned = (
        estimate_memory(TINY, length=64, mesh={"fsdp": 2}, scan_layers=scan)
        for scan in (False, True)
    )
    assert apart.gathered == scanned.gathered
    with pytest.raises(ConfigError, match="method is 'lora' and the layers are scanned"):
        estimate_memory(TINY, "lora", length=64, scan_layers=True)


def test_the_estimate_takes_saved_modules_by_layer():
    """In the few layers that it traces, too, patterns are for names layer by layer."""
    config = lnt.LNTuningConfig(modules_to_save=[r"model\.layers\.\d+\.mlp"])
    whole = lnt.LNTuningConfig(modules_to_save=["mlp"])
    model = from_config(TINY, "CAUSAL_LM", scan_layers=True)
    named, plain = (estimate_memory(model, config=each, length=64) for each in (config, whole))
    assert named == plain
    assert named.gradients > estimate_memory(model, length=64).gradients
