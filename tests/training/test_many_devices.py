"""Divided over eight simulated devices, the built-in models train as on one."""

import pytest

from tests.support.devices import run_on_devices

_PROGRAM = """
import sys, tempfile, warnings
warnings.simplefilter("error")
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import lntune_jax as lnt
from lntune_jax.models import base_specs, causal_lm_loss, from_config

FAMILY, AXIS_TYPE = sys.argv[1], AxisType[sys.argv[2]]
SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "llama": SIZES | {"intermediate_size": 48, "num_key_value_heads": 2},
    "scanned": SIZES | {"intermediate_size": 48, "num_key_value_heads": 2},
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "attn_pdrop": 0.0,
             "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "bert": SIZES | {"intermediate_size": 48, "max_position_embeddings": 16},
}
kind = "llama" if FAMILY == "scanned" else FAMILY
task = "SEQ_CLS" if FAMILY == "bert" else "CAUSAL_LM"
options = {"num_labels": 3} if FAMILY == "bert" else {"scan_layers": FAMILY == "scanned"}
model = from_config(CONFIGS[FAMILY] | {"model_type": kind}, task, **options)
draw = np.random.default_rng(0)
params = jax.tree.map(lambda leaf: draw.normal(0, 0.1, leaf.shape).astype("float32"), model.params)
tokens = draw.integers(1, 64, (4, 8, 12)).astype("int32")
config = lnt.LNTuningConfig(modules_to_save=["classifier"] if FAMILY == "bert" else None)

def loss_fn(params, tokens):
    if FAMILY != "bert":
        return causal_lm_loss(model, params, tokens, chunk=16)
    logits = model.apply(params, tokens, jnp.ones_like(tokens)).logits
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 0] % 3).mean()

def train(params, place, check):
    trainable, frozen = lnt.partition_params(params, config, name_map=model.name_map)
    tx = optax.adam(1e-2)
    state, step = lnt.TrainState.create(trainable, tx), lnt.make_train_step(loss_fn, tx)
    before = jax.tree.map(lambda leaf: leaf.sharding, state)
    losses = []
    for batch in tokens:
        state, metrics = step(state, frozen, place(batch))
        losses.append(float(metrics["loss"]))
    if check:
        check(before, state, frozen)
    assert step.compilations() == 1, step.compilations()
    return losses, jax.tree.map(np.asarray, state.trainable)

expected, ends = train(jax.tree.map(jnp.asarray, params), jnp.asarray, None)
assert expected[-1] < expected[0] or FAMILY == "bert"
for words in sys.argv[3:]:
    sizes = {name: int(size) for name, size in (word.split("=") for word in words.split(","))}
    count = int(np.prod(list(sizes.values())))
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), devices=jax.devices()[:count],
                         axis_types=(AXIS_TYPE,) * len(sizes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lnt.errors.ShardingWarning)
        spread = lnt.shard_params(params, mesh, base_specs)
    rows = NamedSharding(mesh, P(tuple(name for name in ("data", "fsdp") if name in sizes)))

    def check(before, state, frozen):
        whole = NamedSharding(mesh, P())
        for was, leaf in zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True):
            assert isinstance(leaf.sharding, NamedSharding), leaf.sharding
            assert leaf.sharding.mesh.axis_types == mesh.axis_types
            assert leaf.sharding.is_equivalent_to(was, leaf.ndim), (was, leaf.sharding)
            assert leaf.sharding.is_equivalent_to(whole, leaf.ndim), leaf.sharding
        divided = [not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(frozen)]
        assert any(divided) == bool({"fsdp", "tensor"} & set(sizes)), sizes
        with tempfile.TemporaryDirectory() as folder:
            names = {"name_map": model.name_map}
            lnt.save_adapter(folder + "/a", state.trainable, config, base=spread, **names)
            back = lnt.restore_adapter(folder + "/a", spread, **names)
        merged = lnt.merge_params(state.trainable, frozen)
        leaves = map(jax.tree.leaves, (spread, back, merged))
        for base, now, then in zip(*leaves, strict=True):
            assert now.sharding.is_equivalent_to(base.sharding, base.ndim), now.sharding
            np.testing.assert_array_equal(now, then)

    losses, trained = train(spread, lambda batch: jax.device_put(batch, rows), check)
    np.testing.assert_allclose(losses, expected, rtol=2e-5, err_msg=words)
    for path, leaf in ends.items():
        np.testing.assert_allclose(trained[path], leaf, rtol=1e-3, atol=2e-4, err_msg=path)
print("done")
"""


@pytest.mark.parametrize(
    ("family", "axis_type", "meshes"),
    [
        ("llama", "Auto", ["fsdp=8", "tensor=2", "data=2,fsdp=2,tensor=2"]),
        ("scanned", "Auto", ["fsdp=4,tensor=2"]),
        ("gpt2", "Auto", ["fsdp=4,tensor=2"]),
        ("bert", "Auto", ["data=8", "fsdp=4,tensor=2"]),
        ("llama", "Explicit", ["fsdp=4,tensor=2"]),
        ("llama", "Explicit", ["data=8"]),
    ],
)
def test_losses_and_shardings_are_those_of_one_device(family, axis_type, meshes):
    run_on_devices(_PROGRAM, 8, family, axis_type, *meshes)
