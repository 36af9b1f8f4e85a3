"""Against files that PEFT itself made (make_peft_reference.py), without PyTorch."""

import json

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

import lntune_jax as lnt
from tests.support.paths import REFERENCE
from tests.support.small import relax

BERT = REFERENCE / "peft" / "bert_seq_cls"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
OWN = lnt.LNTuningConfig(
    task_type="SEQ_CLS", target_modules=["LayerNorm"], modules_to_save=["classifier"]
)


@pytest.fixture(scope="module")
def model():
    return lnt.models.from_pretrained(REFERENCE / "bert_seq_cls", task="SEQ_CLS")


@pytest.fixture(scope="module")
def run():
    with np.load(BERT / "run.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def trained(model, run):
    """Our run on the same batches: the trainable leaves at the end, and the losses."""
    trainable, frozen = lnt.partition_params(model.params, OWN)
    tx = relax(optax.adamw(float(run["learning_rate"]), weight_decay=float(run["weight_decay"])))

    def loss_fn(params, batch):
        logits = model.apply(params, batch["input_ids"], batch["attention_mask"]).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()

    @jax.jit
    def step(trainable, state, frozen, batch):
        loss, grads = lnt.value_and_grad(loss_fn)(trainable, frozen, batch)
        updates, state = tx.update(grads, state, trainable)
        return optax.apply_updates(trainable, updates), state, loss

    state, losses = tx.init(trainable), []
    for index in range(len(run["losses"])):
        batch = get_batch(run, index)
        trainable, state, loss = step(trainable, state, frozen, batch)
        losses.append(float(loss))
    return trainable, np.array(losses)


def get_batch(run, index):
    names = ("input_ids", "attention_mask", "labels")
    return {name: run[name][index % len(run[name])] for name in names}


def run_first_batch(model, params, run):
    batch = get_batch(run, 0)
    return model.apply(params, batch["input_ids"], batch["attention_mask"]).logits


def get_key(leaf):
    """The key of a leaf of our BERT in PEFT's file."""
    module, _, name = leaf.rpartition(".")
    copy = "" if module == "classifier" else ".ln_tuning_layers"
    return f"base_model.model.{module}{copy}.{ {'bias': 'bias'}.get(name, 'weight') }"


def test_the_versions_are_recorded():
    versions = json.loads((REFERENCE / "peft" / "versions.json").read_text())
    assert {"python", "numpy", "torch", "transformers", "peft"} == versions.keys()


def test_what_peft_trained_gives_its_logits(model, run):
    before = run_first_batch(model, model.params, run)
    after = run_first_batch(model, lnt.import_peft(BERT, model.params), run)
    assert np.abs(run["logits_after"] - run["logits_before"]).max() > 1
    np.testing.assert_allclose(before, run["logits_before"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(after, run["logits_after"], rtol=0, atol=1e-5)


def test_fifty_steps_give_the_losses_of_peft(trained, run):
    assert len(run["losses"]) == 50
    assert run["losses"][:4].mean() - run["losses"][-4:].mean() > 1
    np.testing.assert_allclose(trained[1], run["losses"], rtol=1e-4)


def test_fifty_steps_give_the_leaves_of_peft(trained):
    expected = load_file(BERT / WEIGHTS)
    found = {get_key(leaf): np.asarray(value).T for leaf, value in trained[0].items()}
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        deviation = np.abs(found[key] - tensor).max() / np.abs(tensor).max()
        assert deviation < 1e-4, (key, deviation)


def test_our_adapter_is_the_file_of_peft(model, tmp_path):
    """The leaves of the file, exported with a config of our own: tensors and fields are PEFT's."""
    tuned = lnt.import_peft(BERT, model.params)
    trainable = lnt.partition_params(tuned, OWN).trainable
    config = OWN.replace(base_model_name_or_path="bert_seq_cls")
    check_same_files(lnt.export_peft(tmp_path / "ours", trainable, config), BERT)


def test_there_and_back_gives_the_file_of_peft(model, tmp_path):
    adapter = lnt.load_peft(BERT, model.params)
    back = lnt.export_peft(tmp_path / "back", adapter.trainable, adapter.config, base=model.params)
    check_same_files(back, BERT)
    assert read_fields(back) == read_fields(BERT)


def check_same_files(found, expected):
    """The same tensors bit for bit, and the same fields but for PEFT's own remarks."""
    ours, theirs = load_file(found / WEIGHTS), load_file(expected / WEIGHTS)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert (ours[key].dtype, ours[key].shape) == (tensor.dtype, tensor.shape)
        assert ours[key].tobytes() == tensor.tobytes(), key
    ours, theirs = read_fields(found), read_fields(expected)
    remarks = {"peft_version", "auto_mapping"}
    assert theirs.keys() - ours.keys() <= remarks
    for name in theirs.keys() - remarks - {"modules_to_save"}:
        assert ours[name] == theirs[name], name
    # PEFT names both modules that a classifier may be called by.
    added = {"classifier", "score"} if theirs["modules_to_save"] else set()
    assert {*(ours["modules_to_save"] or ()), *added} == {*(theirs["modules_to_save"] or ())}
    assert ours.keys() <= theirs.keys()


def read_fields(directory):
    """The config's fields; the order in PEFT's lists is that of a set."""
    fields = json.loads((directory / CONFIG).read_text())
    return {k: sorted(v) if isinstance(v, list) else v for k, v in fields.items()}


def test_the_files_are_small():
    size = sum(path.stat().st_size for path in (REFERENCE / "peft").rglob("*") if path.is_file())
    assert size < 60_000
