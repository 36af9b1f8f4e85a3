"""A classifier of the first token computes no more of the last layer than it reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lntune_jax.models import from_config
from lntune_jax.models.families.encoders import ENCODER
from lntune_jax.models.families.registry import FAMILIES
from tests.support.devices import run_on_devices

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "attention_probs_dropout_prob": 0.3,
    "hidden_dropout_prob": 0.3,
    "classifier_dropout": 0.0,
}
IDS = jnp.asarray(np.random.default_rng(0).integers(5, 50, (3, 9)), "int32")
MASK = jnp.ones_like(IDS).at[1, 6:].set(0)


# What a family says in other words, or beside these.
OWN = {
    "bert": {},
    "roberta": {"pad_token_id": 1, "max_position_embeddings": 18},
    "distilbert": {"hidden_dim": 40, "dropout": 0.3, "seq_classif_dropout": 0.0},
    "modernbert": {
        "local_attention": 4,
        "global_attn_every_n_layers": 2,
        "attention_dropout": 0.3,
        "mlp_dropout": 0.3,
        "pad_token_id": 0,
    },
}


def make(kind, **choices):
    extra = OWN[kind]
    model = from_config(SIZES | extra | {"model_type": kind}, "SEQ_CLS", num_labels=3, **choices)
    random = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(random.standard_normal(leaf.shape) * 0.3, leaf.dtype), model.params
    )
    return model, params


def classify(kind, params, state):
    """The architecture's own head on the first token's state."""

    def dense(weights, x):
        return x @ weights["kernel"] + weights["bias"]

    if kind == "distilbert":
        return dense(params["classifier"], jax.nn.relu(dense(params["pre_classifier"], state)))
    if kind == "modernbert":
        inner = jax.nn.gelu(state @ params["head"]["dense"]["kernel"], approximate=False)
        normal = jax.nn.standardize(inner, epsilon=1e-5) * params["head"]["norm"]["scale"]
        return dense(params["classifier"], normal)
    inner = params["bert"]["pooler"] if kind == "bert" else params["classifier"]
    last = params["classifier"] if kind == "bert" else params["classifier"]["out_proj"]
    return dense(last, jnp.tanh(dense(inner["dense"], state)))


@pytest.mark.parametrize("dropping", [False, True], ids=["whole", "dropout"])
@pytest.mark.parametrize("kind", OWN)
def test_logits_are_those_of_the_hidden_states_and_so_are_gradients(kind, dropping):
    model, params = make(kind)
    key = jax.random.key(3) if dropping else None

    def apply(params):
        return model.apply(params, IDS, MASK, dropout_rng=key)

    def alone(params):
        logits = apply(params).logits
        return jnp.square(logits).sum(), logits

    def from_whole(params):
        output = model.apply(params, IDS, MASK, dropout_rng=key, with_hidden=True)
        logits = classify(kind, params, output.last_hidden_state[:, 0])
        return jnp.square(logits).sum(), logits

    found, expected = (jax.value_and_grad(f, has_aux=True)(params) for f in (alone, from_whole))
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-4),
        found,
        expected,
    )
    if dropping:
        assert not np.allclose(found[0][1], model.apply(params, IDS, MASK).logits, atol=1e-3)


def test_the_last_layer_s_products_are_of_one_token_and_only_where_one_is_read():
    from lntune_jax.models.planning.program import count_flops

    def count(read, with_hidden=False, **choices):
        model, params = make("bert", **choices)
        run = jax.jit(lambda params: read(model.apply(params, IDS, with_hidden=with_hidden)))
        return count_flops(run.lower(params).compile().as_text())

    tokens, width, wide, rows = IDS.size, 16, 40, len(IDS)
    left_out = 2 * (tokens - rows) * (2 * width * width + 2 * width * wide)
    left_out += 4 * rows * (IDS.shape[1] - 1) * IDS.shape[1] * width
    head = 2 * rows * width * (width + 3)
    whole = count(lambda output: output.last_hidden_state, with_hidden=True)
    assert count(lambda output: output.logits) == whole - left_out + head
    mean = count(lambda output: output.logits, pooling="mean")
    assert mean == whole + 2 * rows * width * 3


@pytest.mark.parametrize("with_hidden", [False, True])
@pytest.mark.parametrize(("kind", "pooling"), [("bert", None), ("bert", "mean"), ("roberta", None)])
def test_a_program_holds_every_layer_once(kind, pooling, with_hidden):
    model, params = make(kind, pooling=pooling)

    def run(params):
        return model.apply(params, IDS, with_hidden=with_hidden)

    products = str(jax.make_jaxpr(run)(params)).count("= dot_general")
    head = 1 if pooling == "mean" else 2
    assert products == 8 * SIZES["num_hidden_layers"] + head
    hidden = run(params).last_hidden_state
    assert (hidden is None) == (pooling is None and not with_hidden)


ON_A_MESH = """
import sys, warnings
import jax, numpy as np
from lntune_jax.models import from_pretrained
from tests.support.encoders import TASKS, reference
from tests.support.paths import REFERENCE

warnings.simplefilter("ignore")
for name in sys.argv[1:]:
    arrays = reference(name)
    inputs = [arrays[f"padded.{key}"] for key in ("input_ids", "attention_mask")]
    whole = from_pretrained(REFERENCE / name, TASKS[name])
    expected = jax.jit(whole.apply)(whole.params, *inputs)
    for sizes in ((2, 3), (1, 2), (3, 2)):
        devices = jax.devices()[: sizes[0] * sizes[1]]
        mesh = jax.make_mesh(sizes, ("fsdp", "tensor"), devices=devices)
        apart = from_pretrained(REFERENCE / name, TASKS[name], mesh=mesh)
        divided = sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(apart.params))
        assert divided > 4, divided
        with jax.set_mesh(mesh):
            found = jax.jit(apart.apply)(apart.params, *inputs)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, atol=3e-5)
print("done")
"""


def test_a_mesh_changes_nothing_not_even_in_fused_kernels():
    """Three heads over two devices stay whole; over three each has a third of the fused kernel."""
    names = ["distilbert_masked_lm", "modernbert_seq_cls", "modernbert_masked_lm_untied"]
    run_on_devices(ON_A_MESH, 6, *names)


@pytest.mark.parametrize(
    "row", [row for row in FAMILIES.values() if row.kind is ENCODER], ids=lambda row: row.model_type
)
def test_a_family_has_a_model_for_every_task(row):
    assert {None, *row.heads} == set(row.kind.tasks)
