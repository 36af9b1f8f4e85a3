"""What the backward pass keeps and computes, in bytes and FLOPs: by method, remat and depth."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from lntune_jax.models import estimate_memory, from_config
from lntune_jax.models.nn.stack import POLICIES
from lntune_jax.models.planning.program import count_bytes, count_flops
from tests.support import residuals
from tests.support.shapes import split_loss
from tests.support.step_memory import OPTIONS, TINY, compile_step

TOKENS = jax.ShapeDtypeStruct((2, 64), "int32")


@pytest.mark.parametrize(("name", "limit"), [("llama", 57_000), ("bert", 71_000)])
def test_what_jax_keeps_of_a_layer(name, limit):
    """SmolLM2-135M's and BERT-base's layers; the limits are what is kept, and a percent."""
    norms, whole = (residuals.listed(name, method, TOKENS) for method in ("ln", "full"))
    print({origin: (size, whole.get(origin)) for origin, size in norms.items()})
    assert sum(norms.values()) <= limit
    assert sum(norms.values()) < 0.85 * sum(whole.values())
    # No input of a product with frozen weights is kept.
    assert "input of the output projection" not in norms
    assert norms["norms"] < whole["norms"]


def compiled(remat, scanned, layers):
    model = from_config(
        TINY | {"num_hidden_layers": layers}, "CAUSAL_LM", remat=remat, scan_layers=scanned
    )
    loss, given = split_loss(model, "ln", TOKENS)
    step = jax.jit(jax.value_and_grad(loss)).lower(*given, TOKENS)
    done = step.compile(compiler_options=OPTIONS)
    return count_flops(done.as_text()), count_bytes(done)["temporary_bytes"]


@pytest.mark.long
@pytest.mark.parametrize("scanned", [False, True])
def test_norms_are_computed_again_and_no_product(scanned):
    """Between none and full in memory, at the FLOPs of none; products alone are kept."""
    found = {remat: compiled(remat, scanned, 3) for remat in ("none", "dots_saveable", "full")}
    print(found)
    flops, held = ({remat: own[n] for remat, own in found.items()} for n in (0, 1))
    assert flops["dots_saveable"] == flops["none"] < flops["full"]
    assert held["full"] < held["dots_saveable"] < held["none"]
    each = (held["dots_saveable"] - compiled("dots_saveable", scanned, 2)[1]) / TOKENS.size
    # Two residual streams, queries, keys, values, the scores of four heads, gate and up.
    least = 4 * (2 * 128 + 128 + 2 * 64 + 4 * 64 + 2 * 352)
    assert each == pytest.approx(least, rel=0.01)


def test_flash_attention_is_a_product_too(monkeypatch):
    """Its result and its sums are kept; traced only, since the CPU has none."""
    cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91002)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda _: False)

    def runs(policy):
        def attend(x):
            mixed = jax.nn.dot_product_attention(x, x, x, is_causal=True, implementation="cudnn")
            return jnp.sin(mixed.astype("float32")).sum()

        x = jax.ShapeDtypeStruct((1, 64, 4, 64), "bfloat16")
        program = jax.make_jaxpr(jax.grad(jax.checkpoint(attend, policy=policy)))(x)
        return str(program).count("= dot_product_attention_fwd")

    kinds = ("dots_saveable", "dots_with_no_batch_dims_saveable", "full")
    assert [runs(POLICIES[remat]) for remat in kinds] == [1, 2, 2]


@pytest.mark.parametrize("scanned", [False, True])
def test_the_estimate_knows_it(scanned):
    model = from_config(TINY, "CAUSAL_LM", remat="dots_saveable", scan_layers=scanned)
    tokens = jax.ShapeDtypeStruct((4, 128), "int32")
    found = compile_step(model, "ln", tokens)
    estimate = estimate_memory(model, "ln", batch_size=4, length=128, remat="dots_saveable").total
    print(f"compiler {found:,}, estimate {estimate:,}, {estimate / found - 1:+.1%}")
    assert abs(estimate / found - 1) < 0.1
