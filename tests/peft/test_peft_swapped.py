"""One kind of directory, or of model, given for another: told apart in the user's words."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

import lntune_jax as lnt
from lntune_jax.errors import AdapterError
from tests.support import peft_files as files
from tests.support.small import make_params

BERT = "google-bert/bert-base-uncased"


def make_llama(layers=2):
    def norm():
        return {"scale": jnp.ones(files.WIDTH)}

    layer = {"input_layernorm": norm(), "post_attention_layernorm": norm()}
    return {"model": {"layers": {str(i): layer for i in range(layers)}, "norm": norm()}}


def refuse(call, *fragments, without=()):
    with pytest.raises(AdapterError) as caught:
        call()
    message = str(caught.value)
    for fragment in fragments:
        assert fragment in message
    for fragment in without:
        assert fragment not in message
    assert len(message) < 1000


@pytest.mark.parametrize("read", [lnt.import_peft, lnt.load_peft])
def test_an_adapter_of_a_bert_given_to_a_llama(tmp_path, read):
    path = files.write_adapter(tmp_path, base_model_name_or_path=BERT)
    refuse(
        lambda: read(path, make_llama()),
        "was trained on another model",
        f"{BERT!r}",
        "'bert.embeddings.LayerNorm.bias'",
        "'model.layers.0.input_layernorm.weight'",
        without=["and 5 more", "base_model.model"],
    )


def test_the_same_model_without_its_head(tmp_path):
    path, params = files.write_adapter(tmp_path), files.make_params()
    refuse(lambda: lnt.import_peft(path, params["bert"]), "with the same head")
    refuse(lambda: lnt.import_peft(path, {"model": params}), "with the same head")


@pytest.mark.parametrize("base", [BERT, None])
def test_an_adapter_of_ours_of_a_bert_given_to_a_llama(tmp_path, base):
    config = lnt.LNTuningConfig(base_model_name_or_path=base)
    params = files.make_params()
    trainable, _ = lnt.partition_params(params, config)
    path = lnt.save_adapter(tmp_path / "ours", trainable, config, base=params)
    refuse(
        lambda: lnt.restore_adapter(path, make_llama()),
        "was trained on another model",
        f"{BERT!r}" if base else "no name",
        "'bert.embeddings.LayerNorm.bias'",
        "'model.layers.0.input_layernorm.scale'",
        without=["and 5 more"],
    )


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("LORA", "model.layers.0.self_attn.q_proj.lora_A.weight"),
        ("LORA", "model.embed_tokens.lora_embedding_A"),
        ("LORA", "model.layers.0.self_attn.q_proj.lora_magnitude_vector"),
        ("IA3", "model.layers.0.self_attn.k_proj.ia3_l"),
        ("VERA", "model.layers.0.self_attn.q_proj.vera_lambda_b"),
        ("OFT", "model.layers.0.self_attn.q_proj.oft_R.weight"),
    ],
)
def test_adapters_of_other_methods_of_peft(tmp_path, kind, key):
    """By their config, and by their keys where the config says otherwise."""
    tensors = {files.PREFIX + key: np.ones((2, 2), np.float32)}
    own = files.write_adapter(tmp_path / "own", tensors, peft_type=kind)
    claimed = files.write_adapter(tmp_path / "claimed", tensors)
    for path in (own, claimed):
        refuse(lambda path=path: lnt.import_peft(path, make_llama()), kind, "LN tuning")
        refuse(lambda path=path: lnt.load_peft(path, make_llama()), kind, "PEFT")


@pytest.mark.parametrize(
    "key",
    [
        "model.norm.ln_tuning_layers.weight",
        "base_model.model.classifier.modules_to_save.default.weight",
        "base_model.model.classifier.original_module.weight",
    ],
)
def test_keys_of_a_state_dict_that_peft_did_not_save(tmp_path, key):
    path = files.write_adapter(tmp_path / "peft", {key: np.ones(files.WIDTH, np.float32)})
    refuse(lambda: lnt.import_peft(path, make_llama()), repr(key), "save_pretrained")


def test_a_directory_of_ours_given_to_the_readers_of_peft(tmp_path):
    params = make_params()
    trainable, _ = lnt.partition_params(params, lnt.LNTuningConfig())
    path = lnt.save_adapter(tmp_path / "ours", trainable, lnt.LNTuningConfig(), base=params)
    refuse(lambda: lnt.load_peft(path, params), "of save_adapter", "load_adapter")
    refuse(lambda: lnt.import_peft(path, params), "of save_adapter", "restore_adapter")


def test_a_directory_of_peft_given_to_the_readers_of_ours(tmp_path):
    path = files.write_adapter(tmp_path / "peft")
    refuse(lambda: lnt.restore_adapter(path, {}), "is an adapter of PEFT", "import_peft")
    refuse(lambda: lnt.load_adapter(path), "is an adapter of PEFT", "load_peft")


def test_paths_that_are_no_directory_of_an_adapter(tmp_path):
    path = files.write_adapter(tmp_path / "peft")
    file = path / "adapter_model.safetensors"
    refuse(lambda: lnt.load_peft(file, {}), "is a file: pass the directory")
    refuse(lambda: lnt.load_peft("org/tuned", {}), "hub.from_pretrained")
    (path / "adapter_config.json").unlink()
    refuse(lambda: lnt.load_peft(path, {}), "has no adapter_config.json")
    model = tmp_path / "model"
    model.mkdir()
    save_file({"norm.weight": np.ones(2, np.float32)}, model / "model.safetensors")
    (model / "config.json").write_text(json.dumps({"model_type": "bert"}))
    refuse(lambda: lnt.load_peft(model, {}), "holds no adapter")


@pytest.mark.parametrize("params", [None, {}, {"dense": {"kernel": np.ones((2, 2), np.float32)}}])
def test_a_tree_without_norms(tmp_path, params):
    path = files.write_adapter(tmp_path / "peft")
    refuse(lambda: lnt.import_peft(path, params), "params holds no norm")


@pytest.mark.parametrize("read", [lnt.load_peft, lnt.hub.from_pretrained])
def test_an_adapter_that_is_replaced_while_it_is_read(tmp_path, monkeypatch, read):
    """The config of one version never comes with the weights of the next."""
    params = {"model": {"norm": {"scale": jnp.zeros(2)}, "last": {"norm": {"scale": jnp.zeros(2)}}}}
    path = tmp_path / "adapter"

    def write(number):
        config = lnt.LNTuningConfig(
            target_modules=r".*\.norm", base_model_name_or_path=f"b{number}"
        )
        tuned = {
            name: jnp.full(2, number) for name in ("model.norm.scale", "model.last.norm.scale")
        }
        lnt.export_peft(path, tuned, config, overwrite=True)

    write(1.0)
    safe_open, opened = safetensors.safe_open, []

    def open_and_replace(*args, **kwargs):
        opened.append(args)
        if len(opened) == 2:  # after the config, before the values
            monkeypatch.setattr("safetensors.safe_open", safe_open)
            write(2.0)
        return safe_open(*args, **kwargs)

    monkeypatch.setattr("safetensors.safe_open", open_and_replace)
    found = read(path, params)
    assert len(opened) == 2
    if read is lnt.load_peft:
        assert found.config.base_model_name_or_path == "b2.0"
        assert found.trainable["model.norm.scale"].tolist() == [2.0, 2.0]
    else:
        assert found["model"]["norm"]["scale"].tolist() == [2.0, 2.0]


def test_an_adapter_that_never_stays_as_it_is(tmp_path, monkeypatch):
    params = {"norm": {"scale": jnp.zeros(2)}}
    tuned, config = {"norm.scale": jnp.ones(2)}, lnt.LNTuningConfig(target_modules=["norm"])
    path = lnt.export_peft(tmp_path / "adapter", tuned, config)
    safe_open = safetensors.safe_open

    def touch(*args, **kwargs):
        (path / "adapter_config.json").write_text(config.to_json())
        return safe_open(*args, **kwargs)

    monkeypatch.setattr("safetensors.safe_open", touch)
    refuse(lambda: lnt.load_peft(path, params), "is replaced again and again while it is read")
