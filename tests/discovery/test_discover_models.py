"""The models of lntune_jax: the trace finds the norms that names and shapes say, and no others."""

import jax
import pytest

import lntune_jax as lnt
from lntune_jax.models import from_config
from tests.support.checkpoints import REFERENCE
from tests.support.decoders import ARCHITECTURES
from tests.support.traced import shape

ENCODERS = ("bert_seq_cls", "bert_masked_lm", "bert", "roberta_seq_cls")
TASKS = {"bert_seq_cls": "SEQ_CLS", "bert_masked_lm": "MASKED_LM", "roberta_seq_cls": "SEQ_CLS"}
TOKENS = shape(2, 7, dtype="int32")
CONFIG = lnt.LNTuningConfig()


def check(model):
    """The trace of a model with a mask, equal to the selection by names."""
    found = lnt.discover_norms(model.apply, model.params, TOKENS, TOKENS)
    assert not found.ambiguous
    assert not found.opaque
    assert len(found.norms) == len(found)  # no other kind of norm
    by_name, _ = lnt.partition_params(model.params, CONFIG)
    assert list(found) == list(by_name)
    return found


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name):
    found = check(from_config(REFERENCE / name, task=TASKS.get(name)))
    assert {leaf.kind for leaf in found.norms} == {"layer"}
    assert {leaf.role for leaf in found.norms} == {"scale", "bias"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_decoders(name):
    directory = REFERENCE / "decoders" / name
    options = {"dtype": "bfloat16"}, {"remat": "full"}, {"scan_layers": True}
    for number, option in enumerate(options):
        found = check(from_config(directory, "CAUSAL_LM" if number else "SEQ_CLS", **option))
        offset = 1.0 if name.startswith("gemma") else 0.0
        kind = "layer" if name == "gpt2" else "rms"
        assert {(leaf.kind, leaf.offset) for leaf in found.norms} == {(kind, offset)}
        stacked = {(), (0,)} if "scan_layers" in option else {()}
        assert {leaf.layer_axes for leaf in found.norms} == stacked


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_quantised_bases(name):
    for kind in ("int8", "nf4"):
        check(from_config(REFERENCE / "decoders" / name, "CAUSAL_LM", quantize=kind))


@pytest.mark.parametrize("name", ["bert_seq_cls", "decoders/gemma3_text"])
def test_names_play_no_part(name):
    """The same leaves, under names that say nothing or are wrong."""
    model = from_config(REFERENCE / name, task="SEQ_CLS")
    leaves, treedef = jax.tree_util.tree_flatten(model.params)
    names = lnt.label_params(model.params, CONFIG)
    expected = [i for i, label in enumerate(jax.tree.leaves(names)) if label == "trainable"]
    words = ("kernel", "embedding", "norm", "scale", "mean", "var", "qvalue", "array")
    scrambled = {f"{words[i % 8]}.{i}.{words[(3 * i) % 8]}": leaf for i, leaf in enumerate(leaves)}

    def apply(scrambled, *args):
        flat = [scrambled[key] for key in keys]
        return model.apply(treedef.unflatten(flat), *args)

    keys = list(scrambled)
    found = lnt.discover_norms(apply, scrambled, TOKENS, TOKENS)
    assert set(found) == {keys[i] for i in expected}
    trainable, frozen = lnt.partition_params(scrambled, CONFIG, norms=found)
    assert set(trainable) == set(found)
    assert lnt.merge_params(trainable, frozen) == scrambled
