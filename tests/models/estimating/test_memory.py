"""Counts of published models, and the memory estimate beside the compiler's own analysis."""

from __future__ import annotations

import jax
import pytest

import lntune_jax as lnt
from lntune_jax.models import estimate_memory, from_config
from tests.support.published import LLAMA_2_7B, MISTRAL_7B, PUBLISHED
from tests.support.step_memory import OPTIONS, TINY, compile_step

# Its fusions of the library YNN keep, in each layer, a broadcast as large as the scores.
WITHOUT_YNN = OPTIONS | {"xla_cpu_experimental_ynn_fusion_type": ""}


@pytest.mark.long
@pytest.mark.parametrize(("name", "config", "total", "norms"), PUBLISHED)
def test_published_models_are_counted(name, config, total, norms):
    model = from_config(config, "CAUSAL_LM")
    report = lnt.report_params(model.params, lnt.LNTuningConfig())
    assert (report.total, report.trainable) == (total, norms), name
    layers, width = config["num_hidden_layers"], config["hidden_size"]
    each = 4 if config["model_type"] == "gemma2" else 2
    assert norms == (each * layers + 1) * width


@pytest.mark.parametrize("method", ["ln", "lora", "full"])
@pytest.mark.parametrize("remat", ["none", "dots_with_no_batch_dims_saveable", "full"])
def test_the_estimate_is_near_the_compiler_s(method, remat):
    """float32 only: for bfloat16 the CPU compiler computes in float32, with copies of all."""
    model = from_config(TINY, "CAUSAL_LM", remat=remat)
    tokens = jax.ShapeDtypeStruct((4, 128), "int32")
    found = compile_step(model, method, tokens)
    estimate = estimate_memory(model, method, batch_size=4, length=128, remat=remat).total
    print(
        f"{method} {remat}: compiler {found:,}, estimate {estimate:,}, {estimate / found - 1:+.1%}"
    )
    assert abs(estimate / found - 1) < 0.1


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("remat", ["dots_saveable", "dots_with_no_batch_dims_saveable", "full"])
def test_a_model_is_estimated_by_the_remat_it_was_made_with(remat, scan):
    made = {"remat": remat, "scan_layers": scan}
    model = from_config(TINY, "CAUSAL_LM", **made)
    plain = from_config(TINY, "CAUSAL_LM", scan_layers=scan)
    found, said, none = (
        estimate_memory(given, batch_size=4, length=128, **more)
        for given, more in ((model, {}), (TINY, {"dtype": "float32", **made}), (plain, {}))
    )
    assert found == said
    assert found.activations < 0.8 * none.activations


@pytest.mark.parametrize(
    "remat", ["none", "dots_saveable", "dots_with_no_batch_dims_saveable", "full"]
)
def test_flash_attention_is_estimated_without_scores_and_without_a_device(remat):
    made = {"remat": remat, "dtype": "bfloat16"}
    config = TINY | {"num_hidden_layers": 4}
    model = from_config(config, "CAUSAL_LM", attention="cudnn", **made)
    flash = {length: estimate_memory(model, length=length) for length in (512, 1024)}
    assert flash[512] == estimate_memory(config, length=512, attention="cudnn", **made)
    written = estimate_memory(config, length=1024, **made)
    scores = 4 * config["num_attention_heads"] * 1024**2
    assert written.total - flash[1024].total > scores
    assert flash[1024].activations < 2.05 * flash[512].activations


def test_a_model_is_estimated_by_the_pooling_it_was_made_with():
    config = {"model_type": "bert", "hidden_size": 64, "num_attention_heads": 2}
    config |= {"num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 100}
    first, mean = (from_config(config, "SEQ_CLS", pooling=name) for name in (None, "mean"))
    # The mean reads the last layer at every token.
    less, more = (estimate_memory(model, batch_size=8, length=128) for model in (first, mean))
    assert less.activations + less.working < more.activations + more.working


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("remat", "full"),
        ("attention", "cudnn"),
        ("task", "SEQ_CLS"),
        ("scan_layers", True),
        ("quantize", "int8"),
        ("num_labels", 5),
        ("dtype", "float16"),
    ],
)
def test_what_a_model_was_not_made_with_is_refused(name, value):
    model = from_config(TINY, "CAUSAL_LM")
    with pytest.raises(lnt.errors.ConfigError, match=f"^{name} is .*made with.*leave it out"):
        estimate_memory(model, **{name: value})


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "olmo2", "phi3"])
def test_the_estimate_where_scores_are_most_of_it(model_type):
    """512 tokens and four layers: 21 and 24 % low beside the compiler with YNN.

    A newer compiler holds less for GPT-2: 15 % high with jax 0.12. With jax 0.10 Llama is 6,
    OLMo 2 is 7 and Phi-3 is 8 % high.
    """
    config = TINY | {"model_type": model_type, "num_hidden_layers": 4}
    if model_type == "gpt2":
        config = {"model_type": "gpt2", "vocab_size": 2048, "n_embd": 128, "n_layer": 4}
        config |= {"n_head": 4, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    model = from_config(config, "CAUSAL_LM")
    tokens = jax.ShapeDtypeStruct((2, 512), "int32")
    found = compile_step(model, "ln", tokens, WITHOUT_YNN)
    estimate = estimate_memory(model, "ln", batch_size=2, length=512).total
    print(f"{model_type}: compiler {found:,}, estimate {estimate:,}, {estimate / found - 1:+.1%}")
    highest = {"gpt2": 0.18, "olmo2": 0.1, "phi3": 0.1}.get(model_type, 0.06)
    assert -0.06 < estimate / found - 1 < highest


def test_weights_are_spread_and_layers_gathered():
    alone, spread = (
        estimate_memory(MISTRAL_7B, length=64, mesh=mesh) for mesh in (None, {"fsdp": 8})
    )
    assert alone.weights == 2 * 7_241_732_096 + 2 * 266_240
    assert (alone.gathered, spread.weights) == (0, alone.weights // 8)
    layer = 2 * (4096 * (4096 + 1024) * 2 + 3 * 4096 * 14336 + 2 * 4096)
    assert spread.gathered == layer
    # Not to the byte: gradients are taken off whole, though few are there at the peak.
    assert spread.activations == pytest.approx(alone.activations, rel=0.01)
    divided = estimate_memory(MISTRAL_7B, length=64, mesh={"tensor": 2})
    assert alone.activations / 2 < divided.activations < alone.activations


def test_what_full_fine_tuning_keeps():
    """Sixteen bytes a parameter: bfloat16 and its gradient, the float32 master, two moments."""
    full = estimate_memory(LLAMA_2_7B, "full", length=16)
    assert full.weights + full.gradients + full.optimizer == 16 * 6_738_415_616
    assert estimate_memory(LLAMA_2_7B, "lora", length=16).trainable == 4_194_304


def test_lora_on_a_fused_product_is_counted():
    """A factor of rank 8 on either side of the product for queries, keys and values."""
    config = TINY | {"model_type": "phi3", "num_hidden_layers": 3}
    model = from_config(config, "CAUSAL_LM")
    product = model.params["model"]["layers"]["0"]["self_attn"]["qkv_proj"]["kernel"].shape
    found = estimate_memory(config, "lora", rank=8, length=64, dtype="float32")
    assert found.trainable == 3 * 8 * sum(product)


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "modernbert"])
def test_encoders_are_estimated_too(model_type):
    config = {"model_type": model_type, "num_hidden_layers": 6}
    ln, full = (
        estimate_memory(config, method, task="SEQ_CLS", batch_size=8, length=64)
        for method in ("ln", "full")
    )
    assert 0 < ln.total < full.total / 2


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lorra", {}, "method is 'lorra'; supported: 'ln', 'lora', 'full'"),
        ("ln", {"length": 0}, "length is 0; expected an integer of at least 1"),
        ("ln", {"mesh": {"model": 2}}, "mesh has the axis 'model'; supported: data, fsdp, tensor"),
        ("ln", {"mesh": {"fsdp": 0}}, "mesh has fsdp=0; expected an integer of at least 1"),
        (
            "ln",
            {"mesh": {"tensor": 2}, "model_type": "phi3"},
            "the mesh has tensor=2, along which no estimate divides a phi3",
        ),
        ("ln", {"mesh": {"tensor": 3}}, "tensor=3, which does not divide num_attention_heads = 4"),
    ],
)
def test_what_is_refused(method, options, message):
    options = dict(options)
    kind = options.pop("model_type", "llama")
    with pytest.raises(lnt.LNTuningError, match=message):
        estimate_memory(TINY | {"model_type": kind}, method, **options)
