"""From files to arrays: prefixes, old names, shards, fresh leaves, meshes."""

from __future__ import annotations

import warnings

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from lntune_jax.errors import FreshWeightsWarning, ModelError, UnreadWeightsWarning
from lntune_jax.models import from_pretrained
from lntune_jax.models.families.registry import FAMILIES
from tests.support.checkpoints import REFERENCE, assert_same, rewritten
from tests.support.devices import run_on_devices


def without(key):
    """Leave one tensor out."""
    return lambda tensors: {name: value for name, value in tensors.items() if name != key}


DISTIL_HEAD = ("vocab_transform", "vocab_layer_norm", "vocab_projector")


def test_a_bare_checkpoint_gets_a_head():
    bare = from_pretrained(REFERENCE / "bert")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        headed = from_pretrained(REFERENCE / "bert", "SEQ_CLS", num_labels=4)
    assert_same(headed.params["bert"], bare.params)
    assert headed.fresh == ("classifier.bias", "classifier.kernel")
    assert headed.config.num_labels == 4
    kernel = np.asarray(headed.params["classifier"]["kernel"])
    assert kernel.shape == (24, 4)
    assert 0.15 < kernel.std() < 0.45  # initializer_range is 0.3
    assert not np.asarray(headed.params["classifier"]["bias"]).any()


@pytest.mark.parametrize(
    "name",
    [
        "bert_seq_cls",
        "roberta_masked_lm",
        "bert_masked_lm_untied",
        "distilbert_seq_cls",
        "distilbert_masked_lm",
        "modernbert_seq_cls",
        "modernbert_masked_lm_untied",
    ],
)
def test_a_checkpoint_with_a_head_gives_the_bare_model(name):
    task = "SEQ_CLS" if "seq" in name else "MASKED_LM"
    headed = from_pretrained(REFERENCE / name, task)
    bare = from_pretrained(REFERENCE / name)
    family = FAMILIES[bare.config.model_type]
    assert_same(bare.params, headed.params[family.checkpoint_names.prefix])
    assert bare.fresh == ()
    output = bare.apply(bare.params, np.ones((1, 3), np.int32))
    # Masked language models are stored without a pooler, and none is made up.
    assert (output.pooler_output is None) == (name != "bert_seq_cls")


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("roberta_seq_cls", "TOKEN_CLS"),
        ("roberta_token_cls", "SEQ_CLS"),
        ("bert_masked_lm", "TOKEN_CLS"),
        ("roberta_masked_lm_untied", "SEQ_CLS"),
        ("distilbert_masked_lm_untied", "TOKEN_CLS"),
        ("distilbert_seq_cls", "TOKEN_CLS"),
        # The head before the classifier is the same for every task, and is read.
        ("modernbert_masked_lm", "SEQ_CLS"),
        ("modernbert_masked_lm_untied", "TOKEN_CLS"),
    ],
)
def test_heads_of_other_tasks_are_passed_over(name, task):
    model = from_pretrained(REFERENCE / name, task)
    fresh = {path.split(".")[0] for path in model.fresh}
    assert fresh == ({"classifier"} if name != "distilbert_seq_cls" else set())


def test_a_fresh_pooler_warns():
    with pytest.warns(FreshWeightsWarning, match=r"bert\.pooler\.dense\.kernel"):
        model = from_pretrained(REFERENCE / "bert_masked_lm", "SEQ_CLS")
    assert "bert.pooler.dense.bias" in model.fresh
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean = from_pretrained(REFERENCE / "bert_masked_lm", "SEQ_CLS", pooling="mean")
    assert "pooler" not in mean.params["bert"]


@pytest.mark.parametrize(
    ("name", "task", "modules"),
    [
        ("distilbert", "SEQ_CLS", {"pre_classifier", "classifier"}),
        ("distilbert_seq_cls", "MASKED_LM", set(DISTIL_HEAD)),
        ("modernbert", "TOKEN_CLS", {"head", "classifier"}),
        ("modernbert", "MASKED_LM", {"head", "decoder"}),
    ],
)
def test_fresh_modules_beside_a_classifier_warn(name, task, modules):
    with pytest.warns(FreshWeightsWarning, match="drawn at random"):
        model = from_pretrained(REFERENCE / name, task)
    assert {path.split(".")[0] for path in model.fresh} == modules


@pytest.mark.parametrize(
    ("name", "task", "key"),
    [
        ("distilbert_seq_cls", "SEQ_CLS", "pre_classifier.bias"),
        ("modernbert_seq_cls", "SEQ_CLS", "head.norm.weight"),
    ],
)
def test_a_head_of_which_a_part_is_missing_is_damaged(tmp_path, name, task, key):
    directory = rewritten(tmp_path / "model", name, without(key))
    with pytest.raises(ModelError, match=f"missing keys: {key}"):
        from_pretrained(directory, task)


def test_a_fresh_language_head_warns():
    with pytest.warns(FreshWeightsWarning, match=r"cls\.predictions"):
        model = from_pretrained(REFERENCE / "bert", "MASKED_LM")
    norm = model.params["cls"]["predictions"]["transform"]["LayerNorm"]
    assert np.asarray(norm["scale"]).all()
    assert len(model.fresh) == 5


def test_the_seed_decides_fresh_leaves():
    def kernel(seed):
        model = from_pretrained(REFERENCE / "roberta", "SEQ_CLS", seed=seed, num_labels=2)
        return np.asarray(model.params["classifier"]["dense"]["kernel"])

    np.testing.assert_array_equal(kernel(1), kernel(1))
    assert not np.array_equal(kernel(1), kernel(2))


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_tensorflow_names_of_norms(tmp_path, name):
    def rename(tensors):
        names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, old in names.items():
            tensors = {key.replace(new, old): value for key, value in tensors.items()}
        return tensors

    directory = rewritten(tmp_path / "model", name, rename)
    assert_same(from_pretrained(directory).params, from_pretrained(REFERENCE / name).params)


def test_shards_give_what_one_file_gives():
    whole = from_pretrained(REFERENCE / "bert_seq_cls", "SEQ_CLS")
    shards = from_pretrained(REFERENCE / "bert_seq_cls_sharded", "SEQ_CLS")
    assert_same(shards.params, whole.params)


def test_kernels_are_transposed():
    stored = load_file(REFERENCE / "bert" / "model.safetensors")
    params = from_pretrained(REFERENCE / "bert").params
    np.testing.assert_array_equal(
        params["encoder"]["layer"]["1"]["output"]["dense"]["kernel"],
        stored["encoder.layer.1.output.dense.weight"].T,
    )


@pytest.mark.parametrize("name", ["bert_masked_lm", "roberta_masked_lm"])
def test_the_output_bias_under_its_other_name(tmp_path, name):
    head = "cls.predictions" if name.startswith("bert") else "lm_head"

    def rename(tensors):
        tensors[f"{head}.decoder.bias"] = tensors.pop(f"{head}.bias")
        return tensors

    directory = rewritten(tmp_path / "model", name, rename)
    expected = from_pretrained(REFERENCE / name, "MASKED_LM").params
    assert_same(from_pretrained(directory, "MASKED_LM").params, expected)


@pytest.mark.parametrize("factor", [1, 2])
def test_tied_output_weights_in_the_file_must_agree(tmp_path, factor):
    def add(tensors):
        table = tensors["bert.embeddings.word_embeddings.weight"]
        return tensors | {"cls.predictions.decoder.weight": factor * table}

    directory = rewritten(tmp_path / "model", "bert_masked_lm", add)
    assert from_pretrained(directory).fresh == ()
    if factor == 1:
        expected = from_pretrained(REFERENCE / "bert_masked_lm", "MASKED_LM").params
        assert_same(from_pretrained(directory, "MASKED_LM").params, expected)
    else:
        with pytest.raises(ModelError, match="differ, but config field 'tie_word_embeddings'"):
            from_pretrained(directory, "MASKED_LM")


def test_buffers_of_older_versions_are_passed_over(tmp_path):
    def add(tensors):
        return tensors | {"embeddings.position_ids": np.arange(20)[None]}

    assert from_pretrained(rewritten(tmp_path / "model", "bert", add)).fresh == ()


@pytest.mark.parametrize("task", [None, "SEQ_CLS"])
def test_modules_that_the_model_does_not_have_are_named_and_passed_over(tmp_path, task):
    """As in transformers, which loads such a file too."""
    extra = {"sentence.gate.weight": np.ones(3, np.float32), "encoder.layer.7.gate": np.ones(3)}
    directory = rewritten(tmp_path / "model", "bert", lambda tensors: tensors | extra)
    every = r"(?=.*sentence\.gate\.weight).*encoder\.layer\.7\.gate"
    with pytest.warns(UnreadWeightsWarning, match=every):
        model = from_pretrained(directory, task)
    assert_same(model.params, from_pretrained(REFERENCE / "bert", task).params)


def test_mesh_places_copies_on_every_device():
    mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    params = from_pretrained(REFERENCE / "bert", "SEQ_CLS", mesh=mesh, num_labels=2).params
    for leaf in jax.tree.leaves(params):
        assert leaf.sharding == jax.NamedSharding(mesh, jax.P())
    assert_same(params, from_pretrained(REFERENCE / "bert", "SEQ_CLS", num_labels=2).params)


TWO_DEVICES = """
import sys
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from lntune_jax.models import from_pretrained
from lntune_jax.models.families.registry import FAMILIES

tokens = np.arange(8, dtype=np.int32).reshape(2, 4) + 5
mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], np.int32)
single = from_pretrained(sys.argv[1], "SEQ_CLS")
expected = jax.jit(single.apply)(single.params, tokens, mask).logits
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    model = from_pretrained(sys.argv[1], "SEQ_CLS", mesh=mesh)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    inputs = [jax.device_put(array, rows) for array in (tokens, mask)]

    def loss(params, tokens, mask, key):
        return model.apply(params, tokens, mask, dropout_rng=key).logits.sum()

    logits = jax.jit(model.apply)(model.params, *inputs).logits
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert len(logits.sharding.device_set) == 2
    gradient = jax.jit(jax.grad(loss))(model.params, *inputs, jax.random.key(0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
print("done")
"""


def test_rows_spread_over_two_devices():
    run_on_devices(TWO_DEVICES, 2, REFERENCE / "bert_seq_cls")
