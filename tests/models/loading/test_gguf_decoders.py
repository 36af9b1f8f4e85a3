"""GGUF files of every decoder but Llama and Qwen, against the checkpoints they come from."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from lntune_jax.errors import ModelError
from lntune_jax.models import from_config, from_pretrained
from lntune_jax.models.loading.gguf import GgufFile
from tests.support.gguf_files import checkpoint, turned, write

NAMES = ["gemma", "gemma2", "gemma3_text", "gpt2", "gpt2_untied", "mistral", "olmo2"]
NAMES += ["phi3", "phi3_longrope", "phi3_no_window"]
TOKENS = np.arange(4, 28, dtype=np.int32).reshape(2, 12)


def in_safetensors(directory: Path, config: dict, tensors: dict) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    arrays = {key: np.ascontiguousarray(tensor, np.float32) for key, tensor in tensors.items()}
    save_file(arrays, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_what_the_checkpoint_gives(tmp_path, name):
    config, tensors = checkpoint(name)
    file = write(tmp_path / "model.gguf", config, tensors)
    model = from_pretrained(file, "CAUSAL_LM")
    stored = from_pretrained(in_safetensors(tmp_path / name, config, tensors), "CAUSAL_LM")
    assert model.settings == stored.settings == from_config(file, "CAUSAL_LM").settings
    jax.tree.map(np.testing.assert_array_equal, model.params, stored.params)
    logits = jax.jit(model.apply)(model.params, TOKENS).logits
    np.testing.assert_array_equal(logits, jax.jit(stored.apply)(stored.params, TOKENS).logits)


def wide(name: str) -> tuple[dict, dict]:
    """One layer whose rows hold whole blocks of every way to quantise."""
    config, _ = checkpoint(name)
    if name == "gpt2":
        config |= {"n_embd": 64, "n_inner": 96, "n_layer": 1, "n_head": 2}
    else:
        config |= {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
        config |= {"head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
        config |= {"query_pre_attn_scalar": 16, "layer_types": ["sliding_attention"]}
    generator = np.random.default_rng(0)
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(from_config(config).params):
        *module, last = (key.key for key in path)
        key = ".".join([*module, "bias" if last == "bias" else "weight"])
        shape = leaf.shape[::-1] if last == "kernel" and name != "gpt2" else leaf.shape
        key = key if name == "gpt2" else "model." + key
        tensors[key] = generator.normal(size=shape).astype(np.float32)
    return config, tensors


@pytest.mark.parametrize("quantised", ["F16", "Q8_0"])
@pytest.mark.parametrize("name", ["gemma3_text", "gpt2"])
def test_quantised_tensors(tmp_path, name, quantised):
    config, tensors = wide(name)
    model = from_pretrained(write(tmp_path / "model.gguf", config, tensors, quantised=quantised))
    kind = gguf.GGMLQuantizationType[quantised]

    def through(key: str, tensor: np.ndarray) -> np.ndarray:
        """What is left of a tensor after a quantisation of its rows, as the file holds them."""
        if tensor.ndim == 1:
            offset = np.float32(key.endswith("norm.weight"))
            return (tensor + offset) - offset
        rows = tensor.T if turned(config, key) else tensor
        kept = gguf.dequantize(gguf.quants.quantize(np.ascontiguousarray(rows), kind), kind)
        return kept.T if turned(config, key) else kept

    expected = {key: through(key, tensor) for key, tensor in tensors.items()}
    stored = from_pretrained(in_safetensors(tmp_path / name, config, expected))
    jax.tree.map(np.testing.assert_array_equal, model.params, stored.params)


def layers(path: Path, name: str, config: dict | None = None, **options) -> tuple:
    """The settings of the layers of a file that holds little but metadata."""
    given, tensors = checkpoint(name)
    tensors = {key: tensor for key, tensor in tensors.items() if "layers" not in key}
    settings = from_config(write(path, {**given, **(config or {})}, tensors, **options)).settings
    return settings.layers, settings


def test_the_scale_of_queries(tmp_path):
    """The models of 27 billion parameters are known by their number of layers, as in llama.cpp."""
    for name, count in (("gemma2", 46), ("gemma3_text", 62)):
        config, tensors = checkpoint(name)
        embeddings = {key: tensor for key, tensor in tensors.items() if "embed" in key}
        for layers, expected in ((count - 1, 8), (count, 6)):  # 24 entries for 4 heads
            changed = config | {"num_hidden_layers": layers}
            path = write(tmp_path / "model.gguf", changed, embeddings)
            assert GgufFile(path).config()["query_pre_attn_scalar"] == expected


def test_windows(tmp_path):
    path = tmp_path / "model.gguf"

    def windows(name: str, **options) -> list:
        found, _ = layers(path, name, {"num_hidden_layers": 7}, **options)
        return [layer.window for layer in found]

    key, pattern = "attention.sliding_window", "attention.sliding_window_pattern"
    assert windows("gemma2") == [4, None, 4, None, 4, None, 4]
    assert windows("gemma2", without=(key,)) == [4096, None] * 3 + [4096]
    assert windows("gemma3_text") == [4] * 5 + [None, 4]
    assert windows("gemma3_text", without=(key,)) == [None] * 7
    assert windows("gemma3_text", extra={key: 0}) == [None] * 7
    assert windows("gemma3_text", extra={pattern: 3}) == [4, 4, None, 4, 4, None, 4]
    assert windows("gemma3_text", extra={pattern: 1}) == [None] * 7
    assert windows("gemma3_text", extra={pattern: 0}) == [4] * 7
    each = [False, True, False, False, True, True, True]
    expected = [4 if local else None for local in each]
    assert windows("gemma3_text", extra={pattern: each}) == expected
    assert windows("mistral") == [5] * 7
    assert windows("mistral", extra={key: 0}) == [None] * 7


def test_rotary_positions(tmp_path):
    path = tmp_path / "model.gguf"
    (local, *_, whole, _), _ = layers(path, "gemma3_text", {"num_hidden_layers": 7})
    assert (local.rope.kind, local.rope.theta) == ("default", 200)
    assert (whole.rope.kind, whole.rope.theta, whole.rope.factor) == ("linear", 3000, 4)
    (local, *_), _ = layers(path, "gemma3_text", without=("rope.freq_base_swa",))
    assert local.rope.theta == 10_000
    (layer, *_), _ = layers(path, "gemma", without=("rope.freq_base",))
    assert layer.rope.theta == 10_000
    # llama.cpp takes a factor without a type for a linear one.
    (layer, *_), settings = layers(path, "mistral", extra={"rope.scaling.factor": 2.5})
    assert (layer.rope.kind, layer.rope.factor, settings.model_type) == ("linear", 2.5, "mistral")
    yarn = {"type": "yarn", "factor": 2.0, "original_context_length": 8}
    yarn |= {"yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0, "yarn_ext_factor": 1.0}
    extra = {f"rope.scaling.{key}": value for key, value in yarn.items()}
    (layer, *_), _ = layers(path, "mistral", extra=extra)
    rope = layer.rope
    assert (rope.kind, rope.factor, rope.positions) == ("yarn", 2, 8)
    assert (rope.fast, rope.slow) == (16, 2)


def test_what_a_file_leaves_out(tmp_path):
    path = tmp_path / "model.gguf"
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    _, settings = layers(path, "gemma2", without=caps)
    assert (settings.attention_cap, settings.final_cap) == (50, 30)
    _, settings = layers(path, "gemma3_text", without=caps)
    assert (settings.attention_cap, settings.final_cap) == (None, None)


def test_a_part_of_a_head_turns(tmp_path):
    path = tmp_path / "model.gguf"
    (layer, *_), _ = layers(path, "phi3", without=("rope.dimension_count",))
    assert layer.rope.width == 8
    (layer, *_), _ = layers(path, "phi3", extra={"rope.dimension_count": 2})
    assert layer.rope.width == 2


REFUSED = [
    ("gemma", {"attention.sliding_window": 4}, r"gemma\.attention\.sliding_window is 4"),
    ("gemma", {"final_logit_softcapping": 4.0}, r"gemma\.final_logit_softcapping is 4\.0"),
    ("gemma2", {"rope.freq_base_swa": 4.0}, r"gemma2\.rope\.freq_base_swa is 4\.0"),
    ("gemma2", {"attention.scale": 0.5}, r"gemma2\.attention\.scale is 0\.5"),
    ("gemma2", {"attention.sliding_window_pattern": [True]}, r"sliding_window_pattern is \[True\]"),
    ("gemma3_text", {"attn_logit_softcapping": 5.0}, r"gemma3\.attn_logit_softcapping is 5\.0"),
    ("gemma3_text", {"attention.key_length_swa": 4}, r"gemma3\.attention\.key_length_swa is 4"),
    ("gemma3_text", {"rope.scaling.yarn_attn_factor": 0.5}, r"yarn_attn_factor is 0\.5"),
    ("olmo2", {"attention.sliding_window": 4}, r"olmo2\.attention\.sliding_window is 4"),
    ("olmo2", {"rope.dimension_count": 4}, r"olmo2\.rope\.dimension_count is 4; supported: 8"),
    (
        "phi3",
        {"rope.dimension_count": 10},
        r"dimension_count is 10; supported: an even number",
    ),
    ("phi3", {"rope.dimension_count": 5}, r"dimension_count is 5; supported: an even"),
    ("phi3", {"attention.sliding_window_pattern": 2}, r"sliding_window_pattern is 2"),
    ("phi3_longrope", {"rope.scaling.type": "yarn"}, r"scaling\.type is 'yarn'; supported: 'longr"),
    (
        "phi3_longrope",
        {"rope.scaling.attn_factor": -1.0},
        r"attn_factor is -1\.0; supported: a ",
    ),
    ("gpt2", {"attention.head_count_kv": 1}, r"gpt2\.attention\.head_count_kv is 1"),
    ("gpt2", {"rope.freq_base": 5.0}, r"gpt2\.rope\.freq_base is 5\.0"),
    ("gpt2", {"feed_forward_length": 48}, r"wrong shapes: .*c_fc\.weight \(expected \(24, 48\)"),
    ("mistral", {"rope.scale_linear": 2.0}, r"llama\.rope\.scale_linear is 2\.0"),
    ("mistral", {"rope.scaling.yarn_ext_factor": 0.5}, r"yarn_ext_factor is 0\.5"),
]


@pytest.mark.parametrize(("name", "extra", "message"), REFUSED)
def test_refusals_name_the_field(tmp_path, name, extra, message):
    path = write(tmp_path / "model.gguf", *checkpoint(name), extra=extra)
    with pytest.raises(ModelError, match=rf"(?s)model\.gguf.*{message}"):
        from_pretrained(path)


def test_further_refusals(tmp_path):
    path = tmp_path / "model.gguf"
    config, tensors = checkpoint("gemma3_text")
    write(path, config, tensors, without=("rope.freq_base",))
    with pytest.raises(ModelError, match=r"gemma3\.rope\.freq_base is None; supported: one number"):
        from_pretrained(path)
    config, tensors = checkpoint("phi3_longrope")
    write(path, config, tensors, without=("rope.scaling.original_context_length",))
    with pytest.raises(ModelError, match=r"original_context_length is None; supported: one number"):
        from_pretrained(path)
    config, tensors = checkpoint("mistral")
    biased = tensors | {"model.layers.0.self_attn.q_proj.bias": np.ones(32, np.float32)}
    write(path, config, biased)
    with pytest.raises(ModelError, match="sliding_window is 5; supported: no window, in a model"):
        from_pretrained(path)
