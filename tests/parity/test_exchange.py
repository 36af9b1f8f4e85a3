"""Adapters of the training runs, taken across: PEFT's here, ours into PEFT, there and back."""

import json

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file

import lntune_jax as lnt
from lntune_jax.integrations.torchax import from_torch
from tests.support.parity.exchange import (
    WEIGHTS,
    check_export,
    check_import,
    expect_usual_warnings,
    load_with_peft,
    move,
    move_leaves,
    run_ours,
    run_torch,
    save,
    wrap,
)
from tests.support.parity.small_models import make_batch
from tests.support.parity.training import (
    PEFT_FIELDS,
    clean,
    get_values,
    make_config,
    make_module,
    make_ours,
    train_with_ours,
    train_with_peft,
)


def get_batch(name):
    """One that nobody trained on."""
    return make_batch(name, seed=99)


def train_and_export(name, directory, **fields):
    """Our trained adapter as a PEFT directory, and the parameters with it in place."""
    ours, trained = make_ours(name), train_with_ours(name, 0.0).values
    lnt.export_peft(directory, trained, ours.config.replace(**fields))
    return lnt.merge_params(trained, ours.frozen)


@pytest.mark.parametrize("name", PEFT_FIELDS)
def test_what_peft_trained_gives_its_logits_here(name, tmp_path):
    run, wrapped = train_with_peft(name, 0.0)
    model = make_ours(name).model
    params = check_import(wrapped, save(wrapped, tmp_path), model, get_batch(name))
    for key, leaf in params.items():
        expected = run.values.get(key, model.params[key])
        np.testing.assert_array_equal(leaf, expected, err_msg=key)


@pytest.mark.parametrize("name", PEFT_FIELDS)
def test_what_we_trained_gives_our_logits_in_peft(name, tmp_path):
    params = train_and_export(name, tmp_path / "adapter")
    check_export(
        make_module(name), tmp_path / "adapter", make_ours(name).model, params, get_batch(name)
    )


@pytest.mark.parametrize("name", PEFT_FIELDS)
def test_merging_is_what_peft_does(name, tmp_path):
    params = train_and_export(name, tmp_path / "adapter")
    merged = load_with_peft(make_module(name), tmp_path / "adapter").merge_and_unload()
    # PEFT leaves the wrapper around a saved module, with the head that it was loaded over.
    found = {
        clean(key): value
        for key, value in merged.named_parameters()
        if ".original_module." not in key
    }
    assert found.keys() == params.keys()
    for key, leaf in params.items():
        np.testing.assert_array_equal(found[key].detach().numpy(), leaf, err_msg=key)
    logits = run_ours(make_ours(name).model, params, get_batch(name))
    # T5's sums are the longest: on one processor its logits have been 1.001e-5 apart.
    tolerance = 2e-5 if name == "t5" else 1e-5
    np.testing.assert_allclose(run_torch(merged, get_batch(name)), logits, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", PEFT_FIELDS)
def test_there_and_back_changes_nothing(name, tmp_path):
    theirs = save(train_with_peft(name, 0.0)[1], tmp_path / "peft")
    params = make_ours(name).model.params
    adapter = lnt.load_peft(theirs, params)
    ours = lnt.export_peft(tmp_path / "ours", adapter.trainable, adapter.config, base=params)
    before, after = (load_file(directory / WEIGHTS) for directory in (theirs, ours))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert after[key].dtype == tensor.dtype
        assert after[key].tobytes() == tensor.tobytes(), key
    assert read_config(ours) == read_config(theirs)


def read_config(directory):
    """The file's fields; PEFT writes its sets in any order, and some entries twice."""
    fields = json.loads((directory / "adapter_config.json").read_text())
    return {k: sorted(set(v)) if isinstance(v, list) else v for k, v in fields.items()}


@pytest.mark.parametrize("name", PEFT_FIELDS)
def test_peft_reads_our_config_as_its_own(name, tmp_path):
    train_and_export(name, tmp_path / "adapter", base_model_name_or_path="base", revision="main")
    config = peft.PeftConfig.from_pretrained(tmp_path / "adapter")  # a warning would fail the test
    assert type(config) is peft.LNTuningConfig
    assert config.task_type == PEFT_FIELDS[name]["task_type"]
    assert (config.base_model_name_or_path, config.revision) == ("base", "main")
    assert config.inference_mode


AUTO = {
    "llama": peft.AutoPeftModelForCausalLM,
    "bert": peft.AutoPeftModelForSequenceClassification,
    "bart": peft.AutoPeftModelForSeq2SeqLM,
}


@pytest.mark.parametrize("name", AUTO)
def test_peft_finds_the_base_of_our_adapter(name, tmp_path):
    base = tmp_path / "base"
    make_module(name).save_pretrained(base)
    params = train_and_export(name, tmp_path / "adapter", base_model_name_or_path=str(base))
    with expect_usual_warnings():
        loaded = AUTO[name].from_pretrained(tmp_path / "adapter").eval()
    logits = run_ours(make_ours(name).model, params, get_batch(name))
    np.testing.assert_allclose(run_torch(loaded, get_batch(name)), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PEFT_FIELDS)
def test_peft_trains_on_from_our_adapter(name, tmp_path):
    train_and_export(name, tmp_path / "adapter")
    with expect_usual_warnings():
        loaded = peft.PeftModel.from_pretrained(
            make_module(name), tmp_path / "adapter", is_trainable=True
        )
    trainable = [key for key, value in loaded.named_parameters() if value.requires_grad]
    assert len(trainable) == len(train_with_ours(name, 0.0).values)


def test_our_own_bert_gives_the_logits_of_what_peft_trained(tmp_path):
    make_module("bert").save_pretrained(tmp_path / "base")
    wrapped = train_with_peft("bert", 0.0)[1]
    model = lnt.models.from_pretrained(tmp_path / "base", task="SEQ_CLS")
    params = lnt.import_peft(save(wrapped, tmp_path / "adapter"), model.params)
    batch = {key: np.int32(value) for key, value in get_batch("bert").items()}
    found, base = (
        np.asarray(model.apply(p, batch["input_ids"], batch["attention_mask"]).logits)
        for p in (params, model.params)
    )
    expected = run_torch(wrapped, get_batch("bert"))
    assert np.abs(expected - base).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_peft_gives_the_logits_of_what_our_own_bert_holds(tmp_path):
    make_module("bert").save_pretrained(tmp_path / "base")
    model = lnt.models.from_pretrained(tmp_path / "base", task="SEQ_CLS")
    config = make_config("bert")
    trainable, frozen = lnt.partition_params(model.params, config)
    moved = move_leaves(trainable)
    lnt.export_peft(tmp_path / "adapter", moved, config)
    loaded = load_with_peft(make_module("bert"), tmp_path / "adapter")
    batch = {key: np.int32(value) for key, value in get_batch("bert").items()}
    merged = lnt.merge_params(moved, frozen)
    logits = model.apply(merged, batch["input_ids"], batch["attention_mask"]).logits
    np.testing.assert_allclose(run_torch(loaded, get_batch("bert")), logits, rtol=0, atol=1e-5)


def test_a_bfloat16_adapter_of_peft_keeps_its_values(tmp_path):
    module = make_module("llama").to(torch.bfloat16)
    wrapped = move(wrap(module, task_type="CAUSAL_LM"))
    params = from_torch(module).params
    tuned = lnt.import_peft(save(wrapped, tmp_path), params)
    for key, value in get_values(wrapped).items():
        assert tuned[key].dtype == params[key].dtype == "bfloat16"
        np.testing.assert_array_equal(tuned[key].astype("float32"), value, err_msg=key)
        assert np.any(tuned[key] != params[key])


def test_peft_rounds_our_masters_to_bfloat16_as_merging_does(tmp_path):
    module = make_module("llama").to(torch.bfloat16)
    trainable, frozen = lnt.partition_params(from_torch(module).params, make_config("llama"))
    masters = move_leaves(trainable)
    lnt.export_peft(tmp_path / "adapter", masters, make_config("llama"))
    with expect_usual_warnings():
        loaded = peft.PeftModel.from_pretrained(module, tmp_path / "adapter", is_trainable=True)
    merged = lnt.merge_params(masters, frozen)
    for key, value in get_values(loaded).items():
        np.testing.assert_array_equal(value, merged[key].astype("float32"), err_msg=key)
        assert np.any(value != masters[key])
