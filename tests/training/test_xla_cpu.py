"""Barriers hold in a step on a CPU: what is to be computed again is, and what once, once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

import lntune_jax as lnt
from lntune_jax.training import xla_cpu

LLAMA = {
    "model_type": "llama",
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}


def make_step(loss_fn, params, **options):
    trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
    tx = optax.sgd(0.1)
    return lnt.make_train_step(loss_fn, tx, **options), lnt.TrainState.create(trainable, tx), frozen


def make_llama(remat):
    model = lnt.models.from_config(LLAMA, "CAUSAL_LM", remat=remat)
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1, leaf.dtype), model.params)
    tokens = jnp.arange(10, dtype=jnp.int32).reshape(2, 5)

    def loss(params, tokens):
        return lnt.models.causal_lm_loss(model, params, tokens)

    return *make_step(loss, params), tokens


def test_remat_stores_less_and_rotary_positions_are_computed_once():
    """By XLA's defaults neither holds with jax 0.10; with 0.12 both do."""

    def look(remat):
        step, state, frozen, tokens = make_llama(remat)
        compiled = step.lower(state, frozen, tokens).compile()
        stored = compiled.memory_analysis().temp_size_in_bytes
        return stored, compiled.as_text().count(" cosine(")

    none, full = look("none"), look("full")
    assert full[0] < 0.6 * none[0]
    assert none[1] == full[1] == 1


def test_inside_another_jit_the_step_asks_the_compiler_for_nothing():
    params = {"ln": {"scale": jnp.ones(3)}, "w": jnp.arange(3.0)}
    step, state, frozen = make_step(
        lambda p: jnp.square(p["ln"]["scale"] * p["w"]).sum(), params, donate=False
    )
    alone, _ = step(*step(state, frozen)[:1], frozen)

    def body(state, _):
        return step(state, frozen)[0], None

    looped, _ = jax.jit(lambda state: jax.lax.scan(body, state, length=2))(state)
    jax.tree.map(np.testing.assert_array_equal, looped.trainable, alone.trainable)
    assert jax.eval_shape(step, state, frozen)[0].step.shape == ()


BARRIERS = "cse_barrier_expander"


@pytest.mark.parametrize(
    ("flags", "backend", "version", "expected"),
    [
        ("--xla_a=b", "cpu", (0, 11, 1), [f"{BARRIERS},while-loop-invariant-code-motion"]),
        ("--xla_a=b", "cpu", (0, 11, 2), [BARRIERS]),
        ("--xla_disable_hlo_passes=algsimp", "cpu", (0, 11, 1), []),
        ("", "gpu", (0, 11, 1), []),
    ],
)
def test_options_are_for_a_cpu_and_replace_no_flag(monkeypatch, flags, backend, version, expected):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(xla_cpu.jax, "default_backend", lambda: backend)
    monkeypatch.setattr(xla_cpu.jax, "__version_info__", version)
    assert list(xla_cpu.compiler_options().values()) == expected


def test_a_program_is_compiled_for_where_its_arrays_are(monkeypatch):
    there = jnp.ones(2)
    mesh = jax.sharding.AbstractMesh((2,), ("data",))
    abstract = jax.ShapeDtypeStruct((2,), "float32", sharding=NamedSharding(mesh, jax.P()))
    anywhere = [np.ones(2), 1.0, jax.ShapeDtypeStruct((2,), "float32"), abstract]
    monkeypatch.setattr(xla_cpu.jax, "default_backend", lambda: "tpu")
    assert xla_cpu.find_platform(anywhere) == "tpu"
    assert xla_cpu.find_platform([*anywhere, there]) == "cpu"
