"""LayerNorm tuning of a Keras 3 model on the JAX backend, in a loop of your own.

Run: KERAS_BACKEND=jax python examples/packages/keras_loop.py
"""

import os
import tempfile

os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported

import jax
import keras
import numpy as np

import lntune_jax as lnt


def make_model():
    """Stands for a pretrained model. Named layers have the same paths in every process."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16,))
    x = keras.layers.Dense(32, activation="gelu", name="up")(inputs)
    x = keras.layers.BatchNormalization(name="batch")(x)  # is no LayerNorm: stays frozen
    x = keras.layers.LayerNormalization(name="first")(x)
    x = keras.layers.Dense(32, activation="gelu", name="down")(x)
    x = keras.layers.RMSNormalization(name="second")(x)
    return keras.Model(inputs, keras.layers.Dense(1, name="head")(x))


def main():
    model = make_model()
    params = lnt.integrations.keras.get_params(model)  # {"first/gamma": array, ...}
    norms = lnt.integrations.keras.norm_modules(model)  # by layer type, whatever the names

    config = lnt.LNTuningConfig()
    trainable, frozen = lnt.partition_params(params, config, norms=norms)
    print("trains:", *trainable)

    def loss_fn(params, statistics, x, y):
        values = lnt.integrations.keras.list_values(model, params)
        output, _ = model.stateless_call(values, statistics, x, training=False)
        return ((output[:, 0] - y) ** 2).mean()

    statistics = [variable.value for variable in model.non_trainable_variables]
    x = np.random.default_rng(0).normal(size=(256, 16)).astype("float32")
    batch = statistics, x, x.sum(-1)
    tx = lnt.adamw(config, 1e-2)
    step = lnt.make_train_step(loss_fn, tx, config)
    state = lnt.TrainState.create(trainable, tx)
    for index in range(100):
        state, metrics = step(state, frozen, *batch)
        if index in (0, 99):
            print(f"step {index:3d}  loss {metrics['loss']:.3f}")

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/adapter"
        lnt.save_adapter(path, state.trainable, config, base=params, norms=norms)

        fresh = make_model()
        restored = lnt.restore_adapter(path, lnt.integrations.keras.get_params(fresh))
        lnt.integrations.keras.assign_params(
            fresh, restored
        )  # from here on fresh(x), predict, export
    lnt.integrations.keras.assign_params(model, lnt.merge_params(state.trainable, frozen))
    same = np.array_equal(jax.jit(fresh)(x), jax.jit(model)(x))
    print(f"restored into a fresh model: identical {same}")


if __name__ == "__main__":
    main()
