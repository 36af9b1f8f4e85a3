import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lntune_jax as lnt
from tests.support.checkpoints import REFERENCE
from tests.support.outcomes import refused


def same_leaves(left, right):
    one, other = (lnt.load_adapter(directory).trainable for directory in (left, right))
    assert one.keys() == other.keys()
    return all(one[name].tobytes() == other[name].tobytes() for name in one)


def same_tensors(left, right):
    one, other = (load_file(place / "adapter_model.safetensors") for place in (left, right))
    assert one.keys() == other.keys()
    return all(one[key].tobytes() == other[key].tobytes() for key in one)


def test_there_and_back(run, make_run, model_directory, table, tmp_path):
    trained, peft, ours = make_run("default"), tmp_path / "peft", tmp_path / "ours"
    code, printed, complaint = run("convert", trained, peft)
    assert (code, complaint) == (0, "")
    assert "adapter (lntune_jax, " in printed
    assert "peft (PEFT, " in printed
    assert ", none rounded" in printed
    assert {path.name for path in peft.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    code, printed, complaint = run("convert", peft, ours, "--model", model_directory)
    assert (code, complaint) == (0, "")
    assert same_leaves(trained / "adapter", ours)
    run("convert", ours, tmp_path / "again")
    assert same_tensors(peft, tmp_path / "again")
    # With the base at hand too, whose every leaf is then compared.
    run("convert", ours, tmp_path / "based", "--model", model_directory)
    assert same_tensors(peft, tmp_path / "based")
    # What was converted works as what was trained.
    labels = ("--labels", "neg", "pos", "--max-length", 128)
    first = run("evaluate", "--run", trained, "--data", table)
    assert run("evaluate", "--adapter", ours, *labels, "--data", table)[:2] == first[:2]


@pytest.mark.filterwarnings("default")  # as outside of tests: printed, not raised
def test_a_head_that_pools_by_the_mean(run, make_run, model_directory, table, tmp_path):
    trained, peft, ours = make_run("mean"), tmp_path / "peft", tmp_path / "ours"
    code, _, complaint = run("convert", trained, peft)
    assert code == 0
    assert complaint.count("\n") == 1
    assert complaint.startswith("lntune-jax: warning: the classifier reads the mean over tokens")
    words = ("convert", peft, ours, "--model", model_directory)
    code, _, complaint = run(*words)
    assert code == 0
    assert "warning: neither the base nor the adapter holds bert.pooler" in complaint
    code, _, complaint = run(*words, "--overwrite", "--pooling", "mean")
    assert (code, complaint) == (0, "")
    assert same_leaves(trained / "adapter", ours)
    labels = ("--labels", "neg", "pos", "--pooling", "mean")
    assert run("evaluate", "--adapter", ours, *labels, "--data", table)[0] == 0


def test_another_architecture_is_a_flat_tree_of_its_checkpoint(run, tmp_path):
    """The tree that PyTorch's own names make; nothing of the base is read but a few values."""
    base, random = tmp_path / "base", np.random.default_rng(0)
    base.mkdir()
    fields = {"model_type": "granite", "architectures": ["GraniteForCausalLM"]}
    (base / "config.json").write_text(json.dumps(fields))
    tensors = {"lm_head.weight": random.normal(size=(6, 4)).astype("f")}
    for layer in range(2):
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = np.ones(4, "f")
        kernel = random.normal(size=(4, 4)).astype("f")
        tensors[f"model.layers.{layer}.self_attn.q_proj.weight"] = kernel
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, "f")}
    save_file(tensors | buffers, base / "model.safetensors", metadata={"format": "pt"})
    config = lnt.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"])
    trainable, _ = lnt.partition_params(tensors, config)
    tuned = {name: value + 1 for name, value in trainable.items()}
    lnt.export_peft(tmp_path / "peft", tuned, config)
    assert run("convert", tmp_path / "peft", tmp_path / "ours", "--model", base)[0] == 0
    restored = lnt.restore_adapter(tmp_path / "ours", tensors)
    assert restored["model.layers.1.input_layernorm.weight"].tolist() == [2, 2, 2, 2]
    assert lnt.load_adapter(tmp_path / "ours").config.inference_mode is False
    assert run("convert", tmp_path / "ours", tmp_path / "back", "--model", base)[0] == 0
    assert same_tensors(tmp_path / "peft", tmp_path / "back")


@pytest.mark.parametrize("names", ["flax", "torch"])
def test_a_decoder_s_leaves_are_called_as_asked(run, tmp_path, names):
    base = REFERENCE / "decoders" / "llama"
    model = lnt.models.from_pretrained(base, "CAUSAL_LM")
    config = lnt.LNTuningConfig(task_type="CAUSAL_LM", model_type="llama")
    trainable, _ = lnt.partition_params(model.params, config)
    tuned = {name: np.asarray(value) + 1 for name, value in trainable.items()}
    lnt.export_peft(tmp_path / "peft", tuned, config)
    words = ("convert", tmp_path / "peft", tmp_path / "ours", "--model", base)
    assert run(*words, *([] if names == "flax" else ["--leaf-names", names]))[0] == 0
    found = lnt.load_adapter(tmp_path / "ours").trainable
    if names == "flax":
        restored = lnt.restore_adapter(tmp_path / "ours", model.params)
        assert np.array_equal(restored["model"]["norm"]["scale"], tuned["model.norm.scale"])
        assert found.keys() == tuned.keys()
    else:
        assert found["model.norm.weight"].tobytes() == tuned["model.norm.scale"].tobytes()


def test_what_is_refused(run, make_run, model_directory, tmp_path):
    trained, peft = make_run("default"), tmp_path / "peft"
    run("convert", trained, peft)
    refused(run("convert", trained, peft), "peft exists", "--overwrite")
    assert run("convert", trained, peft, "--overwrite")[0] == 0
    refused(run("convert", peft, tmp_path / "x"), "is PEFT's: give its base with --model")
    refused(run("convert", tmp_path / "none", tmp_path / "x"), "there is no adapter directory")
    refused(run("convert", tmp_path, tmp_path / "x"), "holds no adapter: expected lntune.json")
    inside = trained / "adapter" / "x"
    refused(run("convert", trained, inside), "must not lie in one another")
    words = (peft, tmp_path / "x", "--model", model_directory)
    refused(run("convert", *words, "--name-map", "tunix_llama3"), "--name-map", "load_peft")
    words = (trained, tmp_path / "x", "--model", model_directory)
    refused(run("convert", *words, "--name-map", "tunix_llama3"), "--model", "export_peft")
    refused(run("convert", *words[:2], "--name-map", "no"), "--name-map no is not known")
    refused(run("convert", *words[:2], "--model", tmp_path), "no config.json")
    refused(run("convert", peft, tmp_path / "x", "--task", "RANKING"), "'RANKING'")
    assert not (tmp_path / "x").exists()


def test_an_adapter_that_does_not_say_its_task(run, make_run, model_directory, tmp_path):
    peft = tmp_path / "peft"
    run("convert", make_run("default"), peft)
    file = peft / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"task_type": None}))
    words = ("convert", peft, tmp_path / "ours", "--model", model_directory)
    refused(run(*words), "does not say which head", "--task")
    assert run(*words, "--task", "SEQ_CLS")[0] == 0
    assert same_leaves(make_run("default") / "adapter", tmp_path / "ours")


def test_a_damaged_adapter(run, make_run, tmp_path):
    copy = shutil.copytree(make_run("default") / "adapter", tmp_path / "copy")
    (copy / "adapter_config.json").write_text("{}")
    refused(run("convert", copy, tmp_path / "x"), "adapter_config.json")
