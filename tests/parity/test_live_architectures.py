"""The architectures' reference file, and our selection, against transformers and PEFT, live."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

import lntune_jax as lnt
from lntune_jax.selection.architectures import DEFAULT_TARGETS, MODULES_TO_SAVE, PEFT_TARGETS
from tests.support.parity import make_architectures as facts
from tests.support.parity.architectures import (
    MODELS,
    WITH_PEFT_DEFAULT,
    WITHOUT_PEFT_DEFAULT,
    make_model,
)

REFERENCE = json.loads(facts.REFERENCE.read_text())
REMAKE = "run tests/support/parity/make_architectures.py and look at the difference"


def to_tree(model):
    """All parameters of a torch model as abstract arrays, a flat dict as `state_dict` gives."""
    return {
        name: jax.ShapeDtypeStruct(tuple(parameter.shape), jnp.float32)
        for name, parameter in facts.all_parameters(model).items()
    }


def select(tree, **fields):
    """The trainable leaves: path to number of parameters."""
    trainable = lnt.partition_params(tree, lnt.LNTuningConfig(**fields)).trainable
    return {path: math.prod(leaf.shape) for path, leaf in trainable.items()}


def find_norm_leaves(model):
    """The parameters that a norm module holds itself, by the module's type."""
    modules = [path for paths in facts.find_norms(model).values() for path in paths]
    return {f"{m}.{name}" for m in modules for name, _ in model.get_submodule(m).named_parameters()}


def test_the_table_is_the_one_of_peft():
    ours = {name: {*t, *MODULES_TO_SAVE.get(name, ())} for name, t in PEFT_TARGETS.items()}
    assert ours == {name: set(targets) for name, targets in facts.PEFT_DEFAULTS.items()}


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_file_is_what_the_libraries_say(name):
    assert json.loads(json.dumps(facts.describe(name))) == REFERENCE[name], REMAKE


def test_the_reference_file_holds_each_model_once():
    assert list(REFERENCE) == ["versions", *MODELS], REMAKE


@pytest.mark.parametrize("name", WITH_PEFT_DEFAULT)
def test_the_default_is_what_peft_selects(name):
    model = make_model(name)
    tree = to_tree(model)
    model_type = model.config.model_type
    assert model_type in facts.PEFT_DEFAULTS
    found = facts.select_with_peft(model)
    chosen = select(tree, model_type=model_type)
    assert set(chosen) == set(found["trainable"])
    assert sum(chosen.values()) == found["count"]


@pytest.mark.parametrize("name", WITHOUT_PEFT_DEFAULT)
def test_the_default_is_every_norm_by_module_type_where_peft_has_none(name):
    model = make_model(name)
    model_type = model.config.model_type
    assert model_type in DEFAULT_TARGETS
    with pytest.raises(ValueError, match="target_modules"):
        facts.select_with_peft(model)
    assert set(select(to_tree(model), model_type=model_type)) == find_norm_leaves(model)


@pytest.mark.parametrize("name", MODELS)
def test_without_a_model_type_every_norm_by_module_type_trains(name):
    model = make_model(name)
    assert set(select(to_tree(model))) == find_norm_leaves(model)
