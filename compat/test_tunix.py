"""Tunix: its `PeftTrainer` trains, checkpoints and resumes what our config selects, no more."""

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from checks import check_equal, check_moved, check_selection, check_trace, list_leaves
from flax import nnx
from tunix_models import FAMILIES, copy_params, list_norms, make_model, measure_loss, run, train

import lntune_jax as lnt
from lntune_jax.errors import ConfigError

CONFIG = lnt.LNTuningConfig()


def get_trainable(model, config=CONFIG):
    return lnt.partition_params(nnx.state(model, nnx.Param), config).trainable


def read_checkpoint(directory, step, item):
    """The leaf paths in one item of a checkpoint of Tunix, without their `value`."""
    tree = ocp.PyTreeCheckpointHandler().metadata(directory / str(step) / item)
    return {path.removesuffix(".value") for path in list_leaves(tree.tree)}


@pytest.mark.parametrize("family", FAMILIES)
def test_selection_and_marking(family):
    model = make_model(family)
    expected = list_norms(model)
    structure, params, rest = nnx.split(model, nnx.Param, ...)
    trainable = check_selection(params, CONFIG, expected)
    check_trace(lambda params, _: run(nnx.merge(structure, params, rest)), params, None, expected)
    before = run(model)
    assert sorted(lnt.integrations.tunix.mark_trainable(model, CONFIG)) == sorted(trainable)
    marked = nnx.to_flat_state(nnx.state(model, nnx.LoRAParam))
    assert sorted(".".join(map(str, path)) for path, _ in marked) == sorted(trainable)
    check_equal(run(model), before)


@pytest.mark.parametrize("family", ["llama3", "qwen3", "gemma2"])
def test_tunix(family, record, tmp_path):
    model = make_model(family)
    base, expected = copy_params(model), list_norms(model)
    lnt.integrations.tunix.mark_trainable(model, CONFIG)
    before = measure_loss(model)
    train(model, tmp_path / "run", 20)
    after = measure_loss(model)
    assert after < before
    trainable = get_trainable(model)
    check_moved(base, nnx.state(model, nnx.Param), trainable)
    # On disk are the norms, and two moments of each.
    assert read_checkpoint(tmp_path / "run", 20, "model_params") == set(trainable)
    moments = read_checkpoint(tmp_path / "run", 20, "optimizer_state")
    for moment in ("opt_state.0.mu.", "opt_state.0.nu."):
        own = {path.removeprefix(moment) for path in moments if path.startswith(moment)}
        assert own == set(trainable)

    path = lnt.save_adapter(tmp_path / "adapter", trainable, CONFIG, base=base)
    fresh = make_model(family)
    nnx.update(fresh, lnt.restore_adapter(path, nnx.state(fresh, nnx.Param)))
    check_equal(run(fresh), run(model))
    record(
        norms=len(expected),
        selected=len(trainable),
        leaves=len(list_leaves(base)),
        before=before,
        after=after,
        restored="equal",
    )


def test_a_resumed_run_is_the_run(tmp_path):
    whole, first, second = (make_model("llama3") for _ in range(3))
    for model in (whole, first, second):
        lnt.integrations.tunix.mark_trainable(model, CONFIG)
    train(whole, tmp_path / "whole", 12)
    train(first, tmp_path / "parts", 5)
    assert train(second, tmp_path / "parts", 12).train_steps == 12
    check_equal(nnx.state(second, nnx.Param), nnx.state(whole, nnx.Param))


def test_the_config_decides(tmp_path):
    model = make_model("llama3")
    base = copy_params(model)
    config = lnt.LNTuningConfig(target_modules=["input_layernorm"], modules_to_save=["lm_head"])
    marked = lnt.integrations.tunix.mark_trainable(model, config)
    assert marked == ["layers.0.input_layernorm.w", "layers.1.input_layernorm.w", "lm_head.w"]
    train(model, tmp_path, 3)
    check_moved(base, nnx.state(model, nnx.Param), marked)


def test_an_inference_config_is_refused():
    with pytest.raises(ConfigError, match="inference_mode=True"):
        lnt.integrations.tunix.mark_trainable(
            make_model("llama3"), CONFIG.replace(inference_mode=True)
        )


def test_bfloat16_norms_train_in_float32(tmp_path):
    """Gemma 3 multiplies in the scale's dtype: float32 norms make its activations float32."""
    model = make_model("gemma3", param_dtype=jnp.bfloat16)
    dtypes = {leaf.dtype for leaf in list_leaves(nnx.state(model, nnx.Param)).values()}
    assert dtypes == {jnp.dtype(jnp.bfloat16)}
    assert run(model).dtype == jnp.bfloat16
    as_it_is = make_model("gemma3", param_dtype=jnp.bfloat16)
    lnt.integrations.tunix.mark_trainable(as_it_is, CONFIG.replace(param_dtype=None))
    assert run(as_it_is).dtype == jnp.bfloat16
    lnt.integrations.tunix.mark_trainable(model, CONFIG)
    assert {leaf.dtype for leaf in get_trainable(model).values()} == {jnp.dtype(jnp.float32)}
    assert run(model).dtype == jnp.float32


def test_the_example(run_example):
    said = run_example("tunix_trainer.py")
    assert "trains: final_norm.w layers.0.input_layernorm.w" in said
    assert "after 30" in said
    assert "identical True" in said
