"""What a step of a small Llama sends between simulated devices."""

import jax

from lntune_jax.models import from_config
from lntune_jax.models.planning.collectives import list_collectives
from tests.support.mesh_steps import compile_step

LLAMA = {
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
ROWS, LENGTH = 16, 64


def make_mesh(sizes):
    """A mesh of simulated devices, its axes left to the compiler."""
    kinds = (jax.sharding.AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds)


def measure(sizes, method, **options):
    """The collectives of a step; `options` are those of `from_config`."""
    model = from_config(LLAMA, "CAUSAL_LM", dtype="float32", **options)
    tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), "int32")
    text = compile_step(model, method, tokens, make_mesh(sizes)).as_text()
    return list_collectives(text, jax.device_count())
