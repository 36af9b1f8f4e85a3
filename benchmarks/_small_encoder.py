"""A small encoder without embeddings: 6 layers, 384 wide, float32, a classifier of two classes."""

import jax
import jax.numpy as jnp
import optax

import lntune_jax as lnt

LAYERS, WIDTH, HIDDEN, HEADS, CLASSES = 6, 384, 1536, 12, 2
CONFIG = lnt.LNTuningConfig()


def make_params() -> dict:
    keys = iter(jax.random.split(jax.random.key(0), 6 * LAYERS + 1))

    def dense(fan_in: int, fan_out: int) -> dict:
        kernel = jax.random.normal(next(keys), (fan_in, fan_out)) * fan_in**-0.5
        return {"kernel": kernel, "bias": jnp.zeros(fan_out)}

    def norm() -> dict:
        return {"scale": jnp.ones(WIDTH), "bias": jnp.zeros(WIDTH)}

    def layer() -> dict:
        names = ("query", "key", "value", "output")
        block = {name: dense(WIDTH, WIDTH) for name in names}
        block |= {"up": dense(WIDTH, HIDDEN), "down": dense(HIDDEN, WIDTH)}
        return block | {"ln_1": norm(), "ln_2": norm()}

    layers = {str(index): layer() for index in range(LAYERS)}
    return {"layers": layers, "ln_f": norm(), "classifier": dense(WIDTH, CLASSES)}


def apply(params: dict, x: jax.Array) -> jax.Array:
    def dense(x, leaves):
        return x @ leaves["kernel"] + leaves["bias"]

    def norm(x, leaves):
        mean = x.mean(-1, keepdims=True)
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(variance + 1e-6) * leaves["scale"] + leaves["bias"]

    def heads(x):
        return x.reshape(*x.shape[:2], HEADS, -1)

    for layer in params["layers"].values():
        h = norm(x, layer["ln_1"])
        query, key, value = (heads(dense(h, layer[name])) for name in ("query", "key", "value"))
        attended = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        x = x + dense(attended, layer["output"])
        h = norm(x, layer["ln_2"])
        x = x + dense(jax.nn.gelu(dense(h, layer["up"])), layer["down"])
    return dense(norm(x, params["ln_f"]).mean(1), params["classifier"])


def loss_fn(params: dict, batch: tuple) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(apply(params, batch[0]), batch[1])
    return losses.mean()
