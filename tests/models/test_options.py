"""The options of a model: one list of them, for every function that takes them by name."""

import dataclasses
import inspect
import typing

import pytest

from lntune_jax.models import GivenOptions, Options, from_config, from_pretrained
from tests.support.checkpoints import REFERENCE

LLAMA = {
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def test_what_may_be_given_is_what_a_model_keeps():
    hints, fields = typing.get_type_hints(GivenOptions), dataclasses.fields(Options)
    assert list(hints) == [each.name for each in fields]
    kept = typing.get_type_hints(Options)
    # A dtype may be given as any that numpy knows, and is kept by its name.
    assert {name: hints[name] for name in hints if name != "dtype"} == {
        name: kept[name] for name in kept if name != "dtype"
    }


def test_every_option_reaches_the_model():
    given = {"dtype": "bfloat16", "remat": "full", "scan_layers": True, "frozen_layers": 1}
    made = from_config(LLAMA, **given).options
    assert made == Options(**given)
    given = {"dtype": "bfloat16", "pooling": "mean"}
    assert from_pretrained(REFERENCE / "bert", "SEQ_CLS", **given).options == Options(**given)
    assert from_config(LLAMA).options == Options()


@pytest.mark.parametrize(
    ("function", "given", "words"),
    [
        (from_pretrained, "pool", "has no argument 'pool' (did you mean 'pooling'?)"),
        (from_pretrained, "num_label", "did you mean 'num_labels'?"),
        (from_pretrained, "torch_dtype", "did you mean 'dtype'?"),
        (from_config, "remats", "from_config has no argument 'remats' (did you mean 'remat'?)"),
        (from_config, "seed", "from_config has no argument 'seed'"),
        (from_config, "device_map", "no argument 'device_map'. Its options are dtype, pooling, "),
    ],
)
def test_an_unknown_option_is_named_before_anything_is_read(function, given, words):
    with pytest.raises(TypeError, match="has no argument") as caught:
        function("./no-such-directory", **{given: 1})
    assert words in str(caught.value)
    assert ("mesh" in str(caught.value)) == (function is from_pretrained)


@pytest.mark.parametrize("function", [from_pretrained, from_config])
def test_the_help_leads_to_the_options(function):
    """Each stands once, with `Options`; their names are where the function is looked up."""
    text = inspect.getdoc(function)
    if function is from_pretrained:
        assert all(f"`{each.name}`" in text for each in dataclasses.fields(Options))
    assert "options: " in text
    described = inspect.getdoc(Options)
    assert all(f"\n    {each.name}: " in described for each in dataclasses.fields(Options))
