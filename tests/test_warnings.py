"""Each warning that a user can cause points at the line of the user's own code.

Whatever calls lie between: our own, Optax's, JAX's. `tests/training/test_warnings.py` has the rest.
"""

import json
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import save_file

import lntune_jax as lnt
from lntune_jax import errors
from tests.support.checkpoints import rewritten
from tests.support.paths import ROOT

UNMATCHED = lnt.LNTuningConfig(exclude_modules=["missing"])
NORM = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
PARAMS = {"ln": NORM, "head": {"kernel": jnp.ones((4, 2))}}


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.LayerNorm()(x)


def make_nnx():
    return nnx.Sequential(nnx.LayerNorm(4, rngs=nnx.Rngs(0)))


def initialise_with_optax(tmp_path):
    optax.chain(lnt.make_optimizer(optax.sgd(1.0), UNMATCHED)).init(PARAMS)


def initialise_in_a_trace(tmp_path):
    jax.eval_shape(lnt.make_optimizer(optax.sgd(1.0), UNMATCHED).init, PARAMS)


def name_a_norm_that_is_not_there(tmp_path):
    lnt.partition_params(PARAMS, lnt.LNTuningConfig(), norms=["ln", "missing"])


def exclude_a_container(tmp_path):
    lnt.select({"block": PARAMS}, lnt.LNTuningConfig(exclude_modules=["block"]))


def have_what_may_be_a_norm(tmp_path):
    lnt.select({**PARAMS, "layers_1": NORM}, lnt.LNTuningConfig())


def trace_a_penalty(tmp_path):
    def loss(params, x):
        norm = x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * params["w"]
        return norm.sum() + (params["w"] ** 2).sum()

    lnt.discover_norms(loss, {"w": jnp.ones(4)}, jnp.ones((2, 4)))


def load_a_model_without_a_pooler(tmp_path):
    lnt.models.from_pretrained(ROOT / "tests/reference/bert_masked_lm", "SEQ_CLS")


def load_a_model_with_a_tensor_more(tmp_path):
    extra = {"sentence.gate.weight": np.ones(3, np.float32)}
    base = rewritten(tmp_path / "base", "bert", lambda tensors: tensors | extra)
    lnt.models.from_pretrained(base)


def write_peft(folder):
    """An adapter in which PEFT copied a head."""
    folder.mkdir()
    name = "base_model.model.head.ln_tuning_layers.weight"
    save_file({name: np.ones((2, 4), np.float32)}, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LN_TUNING", "target_modules": ["head"]}
    (folder / "adapter_config.json").write_text(json.dumps(fields))


def load_peft_with_a_copied_head(tmp_path):
    write_peft(tmp_path / "peft")
    lnt.load_peft(tmp_path / "peft", PARAMS)


def import_peft_with_a_copied_head(tmp_path):
    write_peft(tmp_path / "peft")
    lnt.import_peft(tmp_path / "peft", PARAMS)


def add_peft_with_a_copied_head_to_a_bank(tmp_path):
    write_peft(tmp_path / "peft")
    lnt.bank.make_bank(PARAMS, {"one": tmp_path / "peft"})


def write_aside(folder):
    """What a process leaves that was killed while it replaced an adapter."""
    config = lnt.LNTuningConfig()
    trainable, _ = lnt.partition_params(PARAMS, config)
    lnt.save_adapter(folder / "adapter", trainable, config, base=PARAMS)
    (folder / "adapter").rename(folder / ".adapter.old-1")


def load_what_was_being_replaced(tmp_path):
    write_aside(tmp_path)
    lnt.load_adapter(tmp_path / "adapter")


def restore_what_was_being_replaced(tmp_path):
    write_aside(tmp_path)
    lnt.restore_adapter(tmp_path / "adapter", PARAMS)


CASES = {
    **{
        f"unmatched in {name}": (errors.UnmatchedPatternWarning, call)
        for name, call in {
            "select": lambda _: lnt.select(PARAMS, UNMATCHED),
            "partition_params": lambda _: lnt.partition_params(PARAMS, UNMATCHED),
            "report_params": lambda _: lnt.report_params(PARAMS, UNMATCHED),
            "label_params": lambda _: lnt.label_params(PARAMS, UNMATCHED),
            "make_filter": lambda _: lnt.integrations.nnx.make_filter(UNMATCHED, make_nnx()),
            "mark_trainable": lambda _: lnt.integrations.tunix.mark_trainable(
                make_nnx(), UNMATCHED
            ),
            "Linen": lambda _: lnt.select(
                Layer().init(jax.random.key(0), jnp.ones((1, 4))), UNMATCHED
            ),
        }.items()
    },
    "Optax": (errors.UnmatchedPatternWarning, initialise_with_optax),
    "a trace": (errors.UnmatchedPatternWarning, initialise_in_a_trace),
    "norms=": (errors.UnmatchedPatternWarning, name_a_norm_that_is_not_there),
    "a container": (errors.UnmatchedPatternWarning, exclude_a_container),
    "uncertain": (errors.UncertainNormWarning, have_what_may_be_a_norm),
    "ambiguous": (errors.TraceWarning, trace_a_penalty),
    "fresh": (errors.FreshWeightsWarning, load_a_model_without_a_pooler),
    "unread": (errors.UnreadWeightsWarning, load_a_model_with_a_tensor_more),
    "load_peft": (errors.CopiedModuleWarning, load_peft_with_a_copied_head),
    "import_peft": (errors.CopiedModuleWarning, import_peft_with_a_copied_head),
    "make_bank": (errors.CopiedModuleWarning, add_peft_with_a_copied_head_to_a_bank),
    "load_adapter": (UserWarning, load_what_was_being_replaced),
    "restore_adapter": (UserWarning, restore_what_was_being_replaced),
}


@pytest.mark.parametrize("name", CASES)
def test_it_points_at_the_caller(name, tmp_path):
    category, cause = CASES[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cause(tmp_path)
    own = [each for each in caught if each.category is category]
    assert own, caught
    first, last = cause.__code__.co_firstlineno, max(n for *_, n in cause.__code__.co_lines() if n)
    for each in own:
        assert each.filename == __file__
        assert first <= each.lineno <= last
