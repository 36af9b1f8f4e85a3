"""Keras 3 on the JAX backend: layers told apart by type, `stateless_call`, `fit`."""

import jax
import keras
import numpy as np
import pytest
from checks import check_equal, check_moved, check_selection, check_tuning

import lntune_jax as lnt
from lntune_jax.errors import ConfigError

NORMS = (keras.layers.LayerNormalization, keras.layers.RMSNormalization)
CONFIG = lnt.LNTuningConfig()


def make_model():
    """Every normalisation layer of Keras, under names that mislead, in a nested model."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 12))
    block = keras.Sequential(
        [
            keras.layers.Dense(12, activation="gelu"),
            keras.layers.LayerNormalization(name="plain"),
            keras.layers.BatchNormalization(name="layer_norm"),
        ],
        name="block",
    )
    x = inputs + block(inputs)
    x = keras.layers.RMSNormalization()(x)
    x = keras.layers.GroupNormalization(3, name="ln_1")(x)
    x = keras.layers.MultiHeadAttention(2, 6, name="attention_norm")(x, x)
    x = keras.layers.LayerNormalization(center=False)(x)
    x = keras.layers.Dropout(0.1)(x)
    x = keras.layers.UnitNormalization()(x)
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def list_norms(model):
    """The paths of the norm layers by Keras' own types, as dotted module paths."""
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, NORMS)]
    return {w.path.rpartition("/")[0].replace("/", ".") for layer in layers for w in layer.weights}


def make_loss(model):
    statistics = [variable.value for variable in model.non_trainable_variables]

    def loss_fn(params, batch):
        x, y = batch
        values = lnt.integrations.keras.list_values(model, params)
        output, _ = model.stateless_call(values, statistics, x, training=False)
        return ((output - y) ** 2).mean()

    return loss_fn


def make_batch():
    x = np.random.default_rng(0).normal(size=(16, 8, 12)).astype("float32")
    return x, x.sum(-1, keepdims=True)


def test_norm_layers_are_found_by_type():
    model = make_model()
    expected = list_norms(model)
    assert expected == {"block.plain", "rms_normalization", "layer_normalization"}
    assert lnt.integrations.keras.norm_modules(model) == expected
    check_selection(lnt.integrations.keras.get_params(model), CONFIG, expected, norms=expected)


def test_keras_stateless_call(record, tmp_path):
    model = make_model()
    norms = lnt.integrations.keras.norm_modules(model)
    check_tuning(
        record,
        lambda: lnt.integrations.keras.get_params(make_model()),
        CONFIG,
        list_norms(model),
        make_loss(model),
        make_batch(),
        tmp_path,
        norms=norms,
    )


def test_an_inference_config_is_refused():
    model = make_model()
    with pytest.raises(ConfigError, match="inference_mode=True"):
        lnt.integrations.keras.train_only(model, CONFIG.replace(inference_mode=True))
    assert len(model.trainable_variables) == len(lnt.integrations.keras.get_params(model))


def test_keras_fit(record, tmp_path):
    model, (x, y) = make_model(), make_batch()
    params, norms = (
        lnt.integrations.keras.get_params(model),
        lnt.integrations.keras.norm_modules(model),
    )
    everything = {v.path: np.asarray(v.value) for v in model.weights}
    assert lnt.integrations.keras.train_only(model, CONFIG) == 4
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    before = model.evaluate(x, y, verbose=0)
    model.fit(x, y, epochs=20, batch_size=16, verbose=0)
    after = model.evaluate(x, y, verbose=0)
    assert after < before
    # The optimizer has state for the norms only: two moments each, its step and its rate.
    assert len(model.optimizer.variables) == 2 * 4 + 2
    tuned = params | lnt.integrations.keras.get_params(model)
    trainable, _ = lnt.partition_params(tuned, CONFIG, norms=norms)
    check_moved(params, tuned, trainable)
    moved = {v.path for v in model.weights if not np.array_equal(v.value, everything[v.path])}
    statistics = {"block/layer_norm/moving_mean", "block/layer_norm/moving_variance"}
    assert moved - statistics == set(lnt.integrations.keras.get_params(model))

    path = lnt.save_adapter(tmp_path / "adapter", trainable, CONFIG, base=params, norms=norms)
    fresh = make_model()
    lnt.integrations.keras.assign_params(
        fresh, lnt.restore_adapter(path, lnt.integrations.keras.get_params(fresh))
    )
    for variable, own in zip(fresh.weights, model.weights, strict=True):
        if variable.path in statistics:
            variable.assign(np.asarray(own))  # `fit` has updated them: they are not the adapter's
    check_equal(fresh.predict(x, verbose=0), model.predict(x, verbose=0))
    record(norms=3, selected=4, leaves=len(params), before=before, after=after, restored="equal")


def test_paths_that_are_not_the_model_s_are_refused():
    model = make_model()
    params = lnt.integrations.keras.get_params(model)
    with pytest.raises(lnt.LNTuningError, match=r"no values for .*block/plain/gamma"):
        lnt.integrations.keras.list_values(
            model, {p: v for p, v in params.items() if "plain" not in p}
        )
    with pytest.raises(lnt.LNTuningError, match="build it first"):
        lnt.integrations.keras.get_params(keras.Sequential([keras.layers.Dense(2)]))


def test_two_variables_of_one_path_are_refused():
    class Twice(keras.layers.Layer):
        def build(self, shape):
            for _ in range(2):
                self.add_weight(shape=(2,), name="same")

    layer = Twice()
    layer.build((None, 2))
    with pytest.raises(lnt.LNTuningError, match="give their layers names"):
        lnt.integrations.keras.get_params(layer)


def test_the_example(run_example):
    said = run_example("keras_loop.py")
    assert "trains: first.beta first.gamma second.scale" in said
    assert "identical True" in said


def test_the_forward_pass_is_the_model_s():
    model, (x, _) = make_model(), make_batch()
    values = lnt.integrations.keras.list_values(model, lnt.integrations.keras.get_params(model))
    state = [variable.value for variable in model.non_trainable_variables]
    output, _ = jax.jit(model.stateless_call)(values, state, x)
    np.testing.assert_allclose(output, model(x, training=False), rtol=1e-5, atol=1e-6)
