"""A small transformer-like model in plain JAX, and Optax under strict dtype promotion."""

import jax
import jax.numpy as jnp
import optax

WIDTH, HIDDEN, LAYERS = 32, 64, 2


def make_params(dtype="float32", seed=0, classes=2):
    keys = iter(jax.random.split(jax.random.key(seed), 3 * LAYERS + 1))

    def dense(fan_in, fan_out):
        kernel = jax.random.normal(next(keys), (fan_in, fan_out)) * fan_in**-0.5
        return {"kernel": kernel.astype(dtype), "bias": jnp.zeros(fan_out, dtype)}

    def norm():
        return {"scale": jnp.ones(WIDTH, dtype), "bias": jnp.zeros(WIDTH, dtype)}

    layers = {
        str(i): {"ln_1": norm(), "up": dense(WIDTH, HIDDEN), "down": dense(HIDDEN, WIDTH)}
        for i in range(LAYERS)
    }
    return {"layers": layers, "ln_f": norm(), "classifier": dense(WIDTH, classes)}


def normalize(x, leaves):
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    y = (x - mean) * jax.lax.rsqrt(variance + 1e-6)
    return y * leaves["scale"].astype(jnp.float32) + leaves["bias"].astype(jnp.float32)


def apply(params, x):
    """(batch, WIDTH) to (batch, classes); matmuls in the dtype of the kernels."""
    dtype = params["classifier"]["kernel"].dtype
    x = x.astype(dtype)
    for layer in params["layers"].values():
        h = normalize(x, layer["ln_1"]).astype(dtype)
        h = jax.nn.gelu(h @ layer["up"]["kernel"] + layer["up"]["bias"])
        x = x + h @ layer["down"]["kernel"] + layer["down"]["bias"]
    x = normalize(x, params["ln_f"]).astype(dtype)
    return x @ params["classifier"]["kernel"] + params["classifier"]["bias"]


def loss_fn(params, batch):
    logits = apply(params, batch["x"]).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


def make_batch(size=16, seed=1):
    x = jax.random.normal(jax.random.key(seed), (size, WIDTH))
    return {"x": x, "y": (x[:, 0] > 0).astype(jnp.int32)}


def relax(tx):
    """`tx` under standard promotion: Optax's Adam mixes weak floats and integers."""

    def wrap(function):
        def call(*args, **kwargs):
            with jax.numpy_dtype_promotion("standard"):
                return function(*args, **kwargs)

        return call

    return optax.GradientTransformationExtraArgs(
        wrap(tx.init), wrap(optax.with_extra_args_support(tx).update)
    )
