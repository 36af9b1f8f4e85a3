"""Microbatches: their share of every device, and the loss of the whole batch."""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lntune_jax as lnt
from lntune_jax.errors import ArgumentError, TreeError
from tests.support.devices import run_on_devices

CONFIG = lnt.LNTuningConfig()
WeightedLoss = lnt.training.WeightedLoss

PROGRAM = textwrap.dedent(
    """
    import math, re, sys
    import jax, jax.numpy as jnp, optax
    from jax.sharding import NamedSharding, PartitionSpec as P
    import lntune_jax as lnt

    axes, parts, rows = sys.argv[1].split(","), int(sys.argv[2]), 32
    count = jax.device_count()
    sizes = {"data": (count,), "data,fsdp": (2, count // 2)}[sys.argv[1]]
    kinds = (jax.sharding.AxisType.Auto,) * len(axes)
    mesh = jax.make_mesh(sizes, tuple(axes), axis_types=kinds)
    params = {
        "norm": {"scale": jnp.ones(48)},
        "first": {"kernel": jnp.ones((48, 80)) * 0.1},
        "second": {"kernel": jnp.ones((80, 48)) * 0.1},
    }
    params = lnt.shard_params(params, mesh)
    trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
    x = jax.device_put(
        jnp.arange(rows * 48.0).reshape(rows, 48) / 1000, NamedSharding(mesh, P(tuple(axes)))
    )

    def loss(params, x):
        hidden = jnp.tanh((x * params["norm"]["scale"]) @ params["first"]["kernel"])
        return jnp.square(hidden @ params["second"]["kernel"]).mean()

    tx = optax.sgd(0.1)
    state = lnt.TrainState.create(trainable, tx)

    def look(parts):
        step = lnt.make_train_step(loss, tx, accumulate=parts, donate=False)
        after, metrics = step(state, frozen, x)
        text = step.lower(state, frozen, x).compile().as_text()
        dots = re.findall(r"= f32\\[(\\d+),\\d+\\]\\S* dot\\(", text)
        gathers = re.findall(r"= f32\\[([\\d,]+)\\]\\S* all-gather", text)
        calls = [name for name in ("all-to-all", "collective-permute") if f" {name}" in text]
        own = [leaf.tolist() for leaf in jax.tree.leaves((metrics["loss"], after.trainable))]
        return {int(n) for n in dots}, gathers, calls, own

    whole_rows, whole_gathers, whole_calls, whole = look(1)
    part_rows, part_gathers, part_calls, part = look(parts)
    if axes == ["data"]:
        assert whole_rows == {rows // count}, whole_rows
        assert part_gathers == whole_gathers == [], part_gathers
    # Each device multiplies its share of each microbatch, and no more.
    assert part_rows == {n // parts for n in whole_rows}, (part_rows, whole_rows)

    def total(gathers):
        return sum(math.prod(int(n) for n in dims.split(",")) for dims in gathers)

    # With divided weights XLA gathers some of either; of a microbatch no more than its part.
    assert total(part_gathers) <= total(whole_gathers), (part_gathers, whole_gathers)
    assert part_calls == whole_calls == [], (part_calls, whole_calls)
    for a, b in zip(whole, part, strict=True):
        assert jnp.allclose(jnp.asarray(a), jnp.asarray(b), rtol=1e-5)
    print("done")
    """
)


@pytest.mark.parametrize(("count", "parts"), [(4, 4), (8, 2)])
@pytest.mark.parametrize("axes", ["data", "data,fsdp"])
def test_a_microbatch_takes_its_share_of_every_device(axes, count, parts):
    """Fault 1: cut into blocks of rows, each lay on a few devices, and was gathered."""
    run_on_devices(PROGRAM, count, axes, parts)


def test_row_r_is_in_microbatch_r_modulo_the_parts():
    tx = optax.sgd(0.1)
    trainable, frozen = lnt.partition_params({"ln": {"scale": jnp.ones(1)}}, CONFIG)
    step = lnt.make_train_step(
        lambda p, x: (p["ln"]["scale"].sum() * x.sum(), x), tx, has_aux=True, accumulate=3
    )
    _, metrics = step(lnt.TrainState.create(trainable, tx), frozen, jnp.arange(6.0))
    np.testing.assert_array_equal(metrics["aux"], [[0, 3], [1, 4], [2, 5]])


ROWS = 8
# Uneven: microbatches of 1 to 11 counted tokens, and rows with none.
MASK = jnp.asarray(np.arange(4) < np.array([0, 1, 4, 2, 0, 3, 4, 0])[:, None], jnp.float32)
VALUES = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, 4, 3)), jnp.float32)


def per_token(params, x):
    return jnp.square(x * params["ln"]["scale"] + params["ln"]["bias"]).sum(-1)


def weighted(params, x, mask):
    return WeightedLoss((per_token(params, x) * mask).sum(), mask.sum())


def mean(params, x, mask):
    return (per_token(params, x) * mask).sum() / mask.sum()


def start(tx):
    params = {"ln": {"scale": jnp.arange(1.0, 4), "bias": jnp.ones(3)}}
    trainable, frozen = lnt.partition_params(params, CONFIG)
    return lnt.TrainState.create(trainable, tx), trainable, frozen


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
@pytest.mark.parametrize("has_aux", [False, True])
def test_a_weighted_loss_is_that_of_the_whole_batch(parts, has_aux):
    """Fault 2: the mean of the microbatches' means is another number."""
    tx = optax.sgd(1.0)
    state, trainable, frozen = start(tx)
    loss, grads = lnt.value_and_grad(mean)(trainable, frozen, VALUES, MASK)
    loss_fn = (lambda *args: (weighted(*args), {})) if has_aux else weighted
    step = lnt.make_train_step(loss_fn, tx, accumulate=parts, has_aux=has_aux)
    after, metrics = step(state, frozen, VALUES, MASK)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    for path, grad in grads.items():
        np.testing.assert_allclose(trainable[path] - after.trainable[path], grad, rtol=1e-5)


def test_a_weighted_loss_in_value_and_grad():
    _, trainable, frozen = start(optax.sgd(1.0))
    expected = lnt.value_and_grad(mean)(trainable, frozen, VALUES, MASK)
    found = lnt.value_and_grad(weighted)(trainable, frozen, VALUES, MASK)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    loss = lnt.value_and_grad(weighted)(trainable, frozen, VALUES, 0 * MASK)[0]
    assert np.isnan(loss)


def test_without_any_weight_the_loss_is_no_number_in_parts_too():
    tx = optax.sgd(1.0)
    state, _, frozen = start(tx)
    step = lnt.make_train_step(weighted, tx, accumulate=4, skip_nonfinite=True)
    after, metrics = step(state, frozen, VALUES, 0 * MASK)
    assert not metrics["finite"]
    np.testing.assert_array_equal(after.trainable["ln.scale"], [1, 2, 3])


def test_weights_of_whole_numbers_and_many_adapters():
    tx = optax.sgd(1.0)
    state, trainable, frozen = start(tx)
    loss, _ = lnt.value_and_grad(mean)(trainable, frozen, VALUES, MASK)

    def counted(params, x, mask):
        return WeightedLoss((per_token(params, x) * mask).sum(), mask.astype("int32").sum())

    step = lnt.make_multi_step(counted, tx, adapters=2, accumulate=4)
    _, metrics = step(lnt.stack_states([state, state]), frozen, VALUES, MASK)
    np.testing.assert_allclose(metrics["loss"], [loss, loss], rtol=1e-6)


def test_a_weight_that_is_no_scalar_is_refused():
    _, trainable, frozen = start(optax.sgd(1.0))
    with pytest.raises(ArgumentError, match=r"weight .* shape \(8,\).*sum over the batch"):
        lnt.value_and_grad(lambda p: WeightedLoss(p["ln"]["scale"].sum(), jnp.ones(8)))(
            trainable, frozen
        )
    with pytest.raises(ArgumentError, match=r"total .* shape \(3,\)"):
        lnt.value_and_grad(lambda p: WeightedLoss(p["ln"]["scale"], 1))(trainable, frozen)


def test_a_plain_mean_is_averaged_over_the_microbatches():
    tx = optax.sgd(1.0)
    state, _, frozen = start(tx)
    values, mask = VALUES[1:7], MASK[1:7]
    step = lnt.make_train_step(mean, tx, accumulate=2)
    _, metrics = step(state, frozen, values, mask)
    params = {"ln": {"scale": jnp.arange(1.0, 4), "bias": jnp.ones(3)}}
    means = [mean(params, values[i::2], mask[i::2]) for i in range(2)]
    np.testing.assert_allclose(metrics["loss"], np.mean(means), rtol=1e-6)


def test_a_leaf_that_cannot_be_cut_is_named():
    tx = optax.sgd(1.0)
    state, _, frozen = start(tx)
    step = lnt.make_train_step(weighted, tx, accumulate=3)
    with pytest.raises(TreeError, match=r"'0' of shape \(8, 4, 3\).*accumulate=3 equal"):
        step(state, frozen, VALUES, MASK)
