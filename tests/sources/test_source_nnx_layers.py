"""Flax NNX: stacked layers, shared norms, and leaves of low precision."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import lntune_jax as lnt
from tests.support.nnx_paths import list_norms, list_paths
from tests.support.small import relax
from tests.support.source_checks import assert_moved_only, read_arrays

CONFIG = lnt.LNTuningConfig()
X = jax.random.normal(jax.random.key(1), (8, 6))


def test_a_bfloat16_model_keeps_small_steps():
    model = nnx.Sequential(nnx.LayerNorm(4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))

    def loss(model):
        return model.layers[0].scale[...].astype(jnp.float32).sum()

    chosen = lnt.integrations.nnx.make_filter(CONFIG, model)
    plain = nnx.Optimizer(model, optax.sgd(1e-4), wrt=chosen)
    ours = lnt.integrations.nnx.make_optimizer(model, optax.sgd(1e-4), CONFIG)
    for optimizer, moved in ((plain, False), (ours, True)):

        @nnx.jit
        def step(model, optimizer):
            grads = nnx.grad(loss, argnums=nnx.DiffState(0, chosen))(model)
            optimizer.update(model, grads)

        for _ in range(100):
            step(model, optimizer)
        assert bool((model.layers[0].scale[...] != 1).all()) == moved


def test_a_norm_that_modules_share(tmp_path):
    class Shared(nnx.Module):
        def __init__(self):
            self.last = nnx.LayerNorm(4, rngs=nnx.Rngs(0))
            self.again = self.last  # NNX meets this one first
            self.fc = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

    model = Shared()
    for name in (None, ["again"], ["last"]):
        chosen = lnt.integrations.nnx.make_filter(lnt.LNTuningConfig(target_modules=name), model)
        assert list_paths(nnx.state(model, chosen)) == {"again.scale", "again.bias"}, name
    state, norms = nnx.state(model), lnt.norm_modules(model)
    trainable, _ = lnt.partition_params(state, CONFIG, norms=norms)
    tuned = {path: leaf + 1 for path, leaf in trainable.items()}
    path = lnt.save_adapter(tmp_path / "adapter", tuned, CONFIG, base=state, norms=norms)
    fresh = Shared()
    nnx.update(fresh, lnt.restore_adapter(path, nnx.state(fresh)))
    assert fresh.last is fresh.again
    assert fresh.last.scale[...].tolist() == [2.0] * 4


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.RMSNorm(6, rngs=rngs)
        self.mix = nnx.Linear(6, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)

    def __call__(self, x):
        return x + self.mix(self.norm(self.first(x)))


class Scanned(nnx.Module):
    """Layers made by vmap and run by scan: a leading axis of 3 in each leaf."""

    def __init__(self, seed=0):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs):
            return Layer(rngs)

        self.layers = make(nnx.Rngs(seed))
        self.end = nnx.LayerNorm(6, rngs=nnx.Rngs(seed))

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def run(layer, x):
            return layer(x)

        return self.end(run(self.layers, x))


def test_scanned_layers(tmp_path):
    model = Scanned()
    model.eval()
    before = read_arrays(nnx.state(model))
    expected = {"layers.first.scale", "end.scale", "end.bias"}
    optimizer = lnt.integrations.nnx.make_optimizer(model, relax(optax.adam(3e-2)), CONFIG)
    assert list_paths(nnx.state(model, optimizer.wrt)) == expected == list_norms(model)
    assert model.layers.first.scale.shape == (3, 6)

    def loss(model):
        return jnp.square(model(X) - 1).mean()

    @nnx.jit
    def step(model, optimizer):
        value, grads = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, optimizer.wrt))(model)
        optimizer.update(model, grads)
        return value

    losses = [float(step(model, optimizer)) for _ in range(10)]
    assert losses[-1] < losses[0]
    after = read_arrays(nnx.state(model))
    assert_moved_only(before, after, read_arrays(nnx.state(model, optimizer.wrt)))
    trainable, _ = lnt.partition_params(model, CONFIG)
    path = lnt.save_adapter(tmp_path / "adapter", trainable, CONFIG, base=model)
    fresh = Scanned()
    fresh.eval()
    restored = lnt.restore_adapter(path, fresh)
    outputs = jax.jit(lambda model: model(X))
    np.testing.assert_array_equal(outputs(restored), outputs(model))
