"""The loss of a decoder, and its gradients, are the single device's on meshes of every shape."""

import pytest

from tests.support.devices import run_on_devices

_STEPS = """
import jax
import jax.numpy as jnp
import numpy as np
import lntune_jax as lnt
from lntune_jax.models import causal_lm_loss, from_config, model_specs
from tests.support.collectives import make_mesh

LLAMA = {
    "model_type": "llama", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 96, "n_embd": 32, "n_head": 4, "n_layer": 2}
random = np.random.default_rng(0)
tokens = jnp.asarray(random.integers(0, 96, size=(8, 16)))
segments = jnp.sort(jnp.asarray(random.integers(1, 4, size=(8, 16))), axis=1)


def check(config, scanned, meshes):
    model = from_config(config, "CAUSAL_LM", scan_layers=scanned)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(size=leaf.shape) * 0.2, leaf.dtype), model.params
    )

    def loss(params, tokens, segments):
        return causal_lm_loss(model, params, tokens, segment_ids=segments, chunk=32)

    @jax.jit
    def measure(params, *batch):
        halves = lnt.partition_params(params, lnt.LNTuningConfig(), name_map=model.name_map)
        return lnt.value_and_grad(loss)(*halves, *batch), jax.value_and_grad(loss)(params, *batch)

    expected = jax.device_get(measure(params, tokens, segments))
    for sizes in meshes:
        mesh = make_mesh(sizes)
        rows = tuple(name for name in sizes if name != "tensor") or None
        place = jax.NamedSharding(mesh, jax.P(rows))
        divided = lnt.shard_params(params, mesh, model_specs(model, mesh))
        found = jax.device_get(measure(divided, *jax.device_put((tokens, segments), place)))
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, atol=2e-6 * max(np.abs(other).max(), 1))


three = {"data": 2, "fsdp": 2, "tensor": 2}
WORK
print("done")
"""


@pytest.mark.parametrize(
    "work",
    [
        'check(LLAMA, False, [{"tensor": 2}, {"fsdp": 4, "tensor": 2}, three, {"fsdp": 8}])',
        'check(LLAMA, True, [{"tensor": 2}, three])',
        'check(GPT2, False, [{"fsdp": 2, "tensor": 4}])',
    ],
    ids=["llama", "llama in a loop", "gpt2"],
)
def test_losses_on_meshes_are_those_of_one_device(work):
    run_on_devices(_STEPS.replace("WORK", work), 8)
