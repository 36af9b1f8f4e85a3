"""On a mesh: shardings are kept, and a step still compiles once. Eight simulated devices."""

from tests.support.devices import run_on_devices

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import NamedSharding, PartitionSpec as P
import lntune_jax as lnt
from tests.support.small import loss_fn, make_batch, make_params

assert jax.device_count() == 8
mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

def place(path, leaf):
    spec = P(None, "model") if leaf.ndim == 2 and leaf.shape[1] % 2 == 0 else P()
    return jax.device_put(leaf, NamedSharding(mesh, spec))

alone = make_params()
params = jax.tree_util.tree_map_with_path(place, alone)
config = lnt.LNTuningConfig(modules_to_save=["classifier"])
ends = []
for tree in (alone, params):
    trainable, frozen = lnt.partition_params(tree, config)
    for path, leaf in trainable.items():
        if tree is params:
            assert isinstance(leaf.sharding, NamedSharding), path
    tx = optax.adam(1e-2)
    step, state = lnt.make_train_step(loss_fn, tx), lnt.TrainState.create(trainable, tx, rng=None)
    for seed in range(3):
        batch = make_batch(16, seed)
        if tree is params:
            batch = jax.device_put(batch, NamedSharding(mesh, P("data")))
        state, metrics = step(state, frozen, batch)
    assert step.compilations() == 1, step.compilations()
    ends.append((float(metrics["loss"]), jax.tree.map(np.asarray, state.trainable)))
    merged = lnt.merge_params(state.trainable, frozen)
    if tree is params:
        for was, now in zip(jax.tree.leaves(tree), jax.tree.leaves(merged), strict=True):
            assert now.sharding.is_equivalent_to(was.sharding, was.ndim), now.sharding
np.testing.assert_allclose(ends[0][0], ends[1][0], rtol=1e-5)
for path, leaf in ends[0][1].items():
    np.testing.assert_allclose(ends[1][1][path], leaf, rtol=1e-3, atol=1e-5)

narrow = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params)
wide, _ = lnt.partition_params(narrow, config)
for path, leaf in wide.items():
    assert leaf.dtype == jnp.float32 and isinstance(leaf.sharding, NamedSharding), path
assert wide["classifier.kernel"].sharding.spec == P(None, "model")
print("done")
"""


def test_eight_devices_agree_with_one():
    run_on_devices(PROGRAM, 8)
