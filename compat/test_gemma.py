"""Google DeepMind's gemma, and kauldron's `partial_updates` with our labels."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import kauldron.optim
import numpy as np
import optax
import pytest
from checks import check_equal, check_moved, check_selection, check_trace, check_tuning, list_leaves
from gemma import gm

import lntune_jax as lnt

CONFIG = lnt.LNTuningConfig()
TOKENS = jnp.asarray(np.random.default_rng(0).integers(1, 16, (4, 12)), jnp.int32)
SIZES = {"num_embed": 64, "embed_dim": 32, "hidden_dim": 48, "num_heads": 4, "num_kv_heads": 2}
SIZES |= {"head_dim": 8, "sliding_window_size": 8}
WITHOUT_POST = {"use_post_attn_norm": False, "use_post_ffw_norm": False}
MODELS = {
    "gemma2": ("Gemma2_2B", {}),
    "gemma2 without post norms": ("Gemma2_2B", WITHOUT_POST),
    "gemma3": ("Gemma3_1B", {}),
}


def make_model(name):
    """The library's transformer with a tiny config."""
    kind, changes = MODELS[name]
    model = getattr(gm.nn, kind)()
    layers = tuple(model.config.attention_types)[4:6]  # a local one and a global one
    config = dataclasses.replace(model.config, attention_types=layers, **SIZES, **changes)
    return dataclasses.replace(model, config=config, dtype=jnp.float32)


def make_params(model):
    return model.init(jax.random.key(0), TOKENS)["params"]


def list_norms(model, params):
    """The module paths of gemma's own RMSNorm, met on the way."""
    found = set()

    def record(call, args, kwargs, context):
        kind = type(context.module)
        if kind.__name__ == "RMSNorm" and kind.__module__.startswith("gemma."):
            found.add(".".join(context.module.path))
        return call(*args, **kwargs)

    jax.clear_caches()  # the transformer jits inside: what it has traced before is not met again
    with nn.intercept_methods(record):
        model.apply({"params": params}, TOKENS)
    return found


def make_functions(model):
    def apply_fn(params, tokens):
        return model.apply({"params": params}, tokens).logits

    def loss_fn(params, tokens):
        logits = apply_fn(params, tokens)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    return apply_fn, loss_fn


@pytest.mark.parametrize("name", MODELS)
def test_the_norms_are_those_of_the_module_type(name):
    model = make_model(name)
    params = make_params(model)
    check_selection({"params": params}, CONFIG, list_norms(model, params))
    check_selection(params, CONFIG, list_norms(model, params))
    check_trace(make_functions(model)[0], params, TOKENS, list_norms(model, params))


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_gemma_our_step(name, record, tmp_path):
    model = make_model(name)
    apply_fn, loss_fn = make_functions(model)
    check_tuning(
        record,
        lambda: make_params(model),
        CONFIG,
        list_norms(model, make_params(model)),
        loss_fn,
        TOKENS,
        tmp_path,
        apply_fn=apply_fn,
    )


def test_gemma3_kauldron_partial_updates(record, tmp_path):
    model = make_model("gemma3")
    apply_fn, loss_fn = make_functions(model)

    def select_norms(params):
        return jax.tree.map("trainable".__eq__, lnt.label_params(params, CONFIG))

    tx = kauldron.optim.partial_updates(optax.adam(1e-2), mask=select_norms)
    base = params = make_params(model)
    opt_state = tx.init(params)
    expected = list_norms(model, params)
    norms, _ = lnt.partition_params(params, CONFIG)
    state_size = sum(leaf.size for leaf in jax.tree.leaves(opt_state))
    assert state_size == 2 * sum(leaf.size for leaf in norms.values()) + 1

    @jax.jit
    def step(params, opt_state):
        loss, grads = jax.value_and_grad(loss_fn)(params, TOKENS)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    losses = []
    for _ in range(20):
        params, opt_state, loss = step(params, opt_state)
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    trainable, _ = lnt.partition_params(params, CONFIG)
    check_moved(base, params, trainable)
    path = lnt.save_adapter(tmp_path / "adapter", trainable, CONFIG, base=base)
    restored = lnt.restore_adapter(path, make_params(model))
    output = jax.jit(apply_fn)
    check_equal(output(restored, TOKENS), output(params, TOKENS))
    record(
        norms=len(expected), selected=len(trainable), leaves=len(list_leaves(params)),
        before=losses[0], after=losses[-1], restored="equal",
    )  # fmt: skip


def test_the_labels_are_kauldron_s_own_selection():
    """What one would write by hand for this model, and what the config finds, are the same."""
    params = make_params(make_model("gemma3"))
    by_hand = kauldron.optim.select(r"[a-z_]*norm\.scale")(params)
    ours = jax.tree.map("trainable".__eq__, lnt.label_params(params, CONFIG))
    assert by_hand == ours


def test_the_example(run_example):
    said = run_example("gemma_partial_updates.py")
    assert "trains 13 of 24 leaves" in said
    assert "identical True" in said
