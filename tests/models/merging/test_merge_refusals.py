"""What merge_checkpoint refuses, and what it unties, prefixes and splits."""

import json
import shutil
import warnings

import numpy as np
from safetensors.numpy import save_file

import lntune_jax as lnt
from lntune_jax.errors import AdapterError, FreshWeightsWarning, ModelError
from lntune_jax.models import from_pretrained, merge_checkpoint
from tests.support import peft_files
from tests.support.checkpoints import REFERENCE, rewritten
from tests.support.merging import is_norm, load_all, refuse, tune


def test_bases_that_are_refused(tmp_path):
    target, adapter = tmp_path / "merged", tmp_path / "adapter"
    tune("bert_seq_cls", adapter)

    def change(name, function):
        return rewritten(tmp_path / name, "bert_seq_cls", function)

    other = change("values", lambda t: {k: v if is_norm(k) else v + 1 for k, v in t.items()})
    refuse(AdapterError, "was trained on another base", other, adapter, target)
    wide = change("wide", lambda t: {k: np.ones(9, "f") if is_norm(k) else v for k, v in t.items()})
    refuse(
        AdapterError,
        r"has shape \(24,\), in the checkpoint \(9,\)",
        wide,
        adapter,
        target,
    )
    key = "bert.embeddings.LayerNorm.bias"
    without = change("without", lambda t: {k: v for k, v in t.items() if k != key})
    refuse(AdapterError, f"it has '{key}'", without, adapter, target)
    twice = change("twice", lambda t: t | {key.replace("bias", "beta"): t[key]})
    refuse(ModelError, "holds .* twice", twice, adapter, target)
    integer = change("integer", lambda t: t | {key: np.ones(24, np.int8)})
    refuse(ModelError, "is stored as I8; supported", integer, adapter, target)
    cut = change("cut", lambda t: t)
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[:-8])
    refuse(ModelError, "damaged or cut short", cut, adapter, target)
    (cut / "model.safetensors").rename(cut / "pytorch_model.bin")
    refuse(ModelError, "a pickle, which can run any code", cut, adapter, target)
    quantised = change("quantised", lambda t: t)
    fields = json.loads((quantised / "config.json").read_text())
    text = json.dumps(fields | {"quantization_config": {"bits": 4}})
    (quantised / "config.json").write_text(text)
    refuse(
        ModelError,
        "config field 'quantization_config' is set",
        quantised,
        adapter,
        target,
    )
    (quantised / "config.json").write_text("{")
    refuse(ModelError, "not a JSON file", quantised, adapter, target)
    refuse(
        ModelError,
        "neither a directory",
        tmp_path / "no" / "base" / "x",
        adapter,
        target,
    )


def test_adapters_that_are_refused(tmp_path):
    target, adapter = tmp_path / "merged", tmp_path / "adapter"
    base = REFERENCE / "bert"
    refuse(AdapterError, "there is no adapter directory", base, adapter, target)
    adapter.mkdir()
    refuse(AdapterError, "expected lntune.json", base, adapter, target)
    (adapter / "adapter_model.bin").touch()
    refuse(AdapterError, "a pickle, which can run any code", base, adapter, target)
    tune("bert", tmp_path / "plain", task="SEQ_CLS", scale=1e6)
    refuse(
        AdapterError,
        "values too large for float16, the type it has in the base",
        REFERENCE / "bert_float16",
        tmp_path / "plain",
        target,
    )
    refuse(
        AdapterError,
        "has 3 outputs, but the labels are 'a'|has 2 outputs, but the labels are 'a'",
        base,
        tmp_path / "plain",
        target,
        labels=["a"],
    )
    refuse(
        ModelError,
        "no class for the task",
        base,
        tmp_path / "plain",
        target,
        task="SEQ_2_SEQ_LM",
    )
    both = shutil.copytree(tmp_path / "plain", tmp_path / "both")
    (both / "adapter_model.safetensors").touch()
    refuse(AdapterError, "two adapters", base, both, target)


def test_a_head_for_an_unknown_task_or_without_its_pooler(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FreshWeightsWarning)
        model = from_pretrained(REFERENCE / "bert_masked_lm", task="SEQ_CLS")
    config = lnt.LNTuningConfig(modules_to_save=["classifier"])
    trainable, _ = lnt.partition_params(model.params, config)
    lnt.save_adapter(tmp_path / "adapter", trainable, config, base=model.params)
    base, target = REFERENCE / "bert_masked_lm", tmp_path / "merged"
    refuse(ModelError, "pass task as one of SEQ_CLS", base, tmp_path / "adapter", target)
    refuse(
        ModelError,
        r"holds 'bert\.pooler\.dense\.bias', .*which the task SEQ_CLS reads",
        base,
        tmp_path / "adapter",
        target,
        task="SEQ_CLS",
    )


def test_an_adapter_that_pools_by_the_mean(tmp_path):
    """Wherever it lies: the run stands for it, and no other file is read."""
    run, base, target = tmp_path / "run", REFERENCE / "bert", tmp_path / "merged"
    said = {"labels": ["no", "maybe", "yes"], "pooling": "mean"}
    tune("bert", run / "adapter", pooling="mean", said=said)
    (run / "labels.json").write_text("{")
    for place in (run, run / "adapter"):
        refuse(AdapterError, "mean over tokens.*norms_only=True", base, place, target)
    assert merge_checkpoint(base, run, target, norms_only=True).unused


def make_llama(directory, fields, tensors):
    directory.mkdir()
    fields = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]} | fields
    (directory / "config.json").write_text(json.dumps(fields))
    save_file(dict(tensors), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_tied_embeddings(tmp_path):
    norm, embed, head = "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"
    tensors = {norm: np.ones(4, "f"), embed: np.ones((6, 4), "f")}
    base = make_llama(tmp_path / "base", {"tie_word_embeddings": True}, tensors)
    config = lnt.LNTuningConfig(modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    params = tensors | {head: 2 * np.ones((6, 4), "f")}
    trainable, _ = lnt.partition_params(params, config)
    lnt.save_adapter(tmp_path / "head", trainable, config, base=params)
    merged = merge_checkpoint(base, tmp_path / "head", tmp_path / "merged")
    assert merged.added == (head,)
    assert json.loads((merged.path / "config.json").read_text())["tie_word_embeddings"] is False
    assert load_all(merged.path)[head].max() == 2
    # Ours has one leaf for both, so that both were trained; PEFT trains a copy of one of them.
    config = lnt.LNTuningConfig(modules_to_save=["embed_tokens"], task_type="CAUSAL_LM")
    trainable, _ = lnt.partition_params(tensors, config)
    lnt.save_adapter(tmp_path / "embed", trainable, config, base=tensors)
    merge_checkpoint(base, tmp_path / "embed", tmp_path / "tied")
    assert (tmp_path / "tied" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    keys = {norm: "model.norm.ln_tuning_layers.weight", embed: embed}
    peft_files.write_adapter(
        tmp_path / "peft",
        {f"base_model.model.{keys[name]}": value for name, value in trainable.items()},
        target_modules=["norm"],
        modules_to_save=["embed_tokens"],
    )
    match = "no output weight of its own"
    refuse(AdapterError, match, base, tmp_path / "peft", tmp_path / "x")
    nested = make_llama(tmp_path / "nested", {"text_config": {}}, tensors)
    refuse(ModelError, "text_config", nested, tmp_path / "head", tmp_path / "x")


def test_a_prefix_that_is_not_clear(tmp_path):
    tensors = {"a.norm.weight": np.ones(4, "f"), "b.norm.weight": np.ones(4, "f")}
    base = make_llama(tmp_path / "base", {}, tensors | {"a.fc.weight": np.ones((4, 4), "f")})
    params = {"norm": {"weight": np.ones(4, "f")}, "fc": {"weight": np.ones((4, 4), "f")}}
    config = lnt.LNTuningConfig()
    trainable, _ = lnt.partition_params(params, config)
    lnt.save_adapter(tmp_path / "adapter", trainable, config, base=params)
    match = r"in 2 ways, with the prefixes 'a\.', 'b\.'"
    refuse(AdapterError, match, base, tmp_path / "adapter", tmp_path / "merged")


def test_a_stack_of_layers_needs_a_name_map(tmp_path):
    tensors = {f"model.layers.{i}.input_layernorm.weight": np.ones(4, "f") for i in range(2)}
    base = make_llama(tmp_path / "base", {}, tensors)
    params = {"layers": {"norm": {"scale": np.arange(8, dtype="f").reshape(2, 4)}}}
    config = lnt.LNTuningConfig()
    trainable, _ = lnt.partition_params(params, config)
    lnt.save_adapter(tmp_path / "adapter", trainable, config, base=params)
    refuse(AdapterError, "stacks of layers", base, tmp_path / "adapter", tmp_path / "x")
    rule = lnt.peft.NameRule(
        leaf="layers.norm.scale",
        parameter="model.layers.{layer}.input_layernorm.weight",
        layer_axis=0,
    )
    name_map = lnt.peft.NameMap(source="a test", model_types=("llama",), rules=(rule,))
    merged = merge_checkpoint(base, tmp_path / "adapter", tmp_path / "merged", name_map=name_map)
    assert merged.compared == 0
    found = load_all(merged.path)["model.layers.1.input_layernorm.weight"]
    assert found.tolist() == [4, 5, 6, 7]
