"""Rules of name maps: what they may say, and what a tree must be for them."""

from dataclasses import replace

import numpy as np
import pytest

from lntune_jax.errors import ConfigError, TreeError
from lntune_jax.names.maps import (
    NameMap,
    NameRule,
    assemble,
    find_places,
)
from lntune_jax.names.tables import NAME_MAPS


def make_map(*rules, **fields):
    return NameMap(source="test", model_types=("llama",), rules=rules or (NameRule(**fields),))


# --- the tables against what the libraries and transformers really hold ---


def test_a_prefix_is_exchanged_where_it_stands():
    bare = NAME_MAPS["keras_hub_bert"].with_prefix("bert.", "")
    (place,) = find_places("embeddings_layer_norm.gamma", (4,), bare)
    assert place.parameter == "embeddings.LayerNorm.weight"
    (head,) = find_places("logits.kernel", (4, 2), bare)
    assert head.parameter == "classifier.weight"
    with pytest.raises(ConfigError, match="begins with 'roberta"):
        bare.with_prefix("roberta.", "")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parameter": "h.{layer}"}, "layer_axis be given"),
        ({"leaf": "l.{layer}"}, "must hold '{layer}'"),
        ({"layer_axis": 0}, "must hold '{layer}'"),
        ({"leaf": "l.{layer}", "parameter": "{layer}", "layer_axis": 0}, "only one can be"),
        ({"leaf": "l.{layer}.{layer}", "parameter": "{layer}"}, "once and no other brace"),
        ({"leaf": "l.{block}"}, "no other brace"),
        ({"leaf": ""}, "leaf must be a name"),
        ({"parameter": None}, "parameter must be a name"),
        ({"first": 1}, "numbered layers"),
        ({"parameter": "{layer}", "layer_axis": -1}, "layer_axis must be an integer from 0"),
        ({"parameter": "{layer}", "layer_axis": 0, "stride": 0}, "stride must be"),
        ({"parameter": "{layer}", "layer_axis": 0, "layers": True}, "layers must be"),
        ({"offset": float("nan")}, "offset must be a finite number"),
        ({"offset": "1"}, "offset must be a finite number"),
    ],
)
def test_rules_that_contradict_themselves(fields, message):
    with pytest.raises(ConfigError, match=message):
        NameRule(**({"leaf": "ln.scale", "parameter": "ln.weight"} | fields))


STACKED = NameRule(leaf="a", parameter="h.{layer}", layer_axis=0, stride=2)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(STACKED, first=1), "two rules are for the leaf 'a'"),
        (replace(STACKED, leaf="b"), "'a' and 'b' both give the parameter"),
        (replace(STACKED, leaf="b", first=1, stride=3), "both give"),
        (replace(STACKED, leaf="b", first=7, stride=1, layers=2), "both give"),
        (replace(STACKED, leaf="b.{layer}", layer_axis=None), "both give"),
    ],
)
def test_rules_that_contradict_each_other(other, message):
    with pytest.raises(ConfigError, match=message):
        make_map(STACKED, other)
    with pytest.raises(ConfigError, match=r"both give|two rules"):
        make_map(other, STACKED)


def test_rules_that_share_a_parameter_of_other_layers():
    make_map(STACKED, replace(STACKED, leaf="b", first=1))
    make_map(STACKED, replace(STACKED, leaf="b", first=7, stride=4, layers=3))
    make_map(
        replace(STACKED, layers=3), replace(STACKED, leaf="b.{layer}", layer_axis=None, first=6)
    )


def test_a_leaf_for_two_rules():
    name_map = make_map(
        NameRule(leaf="l.{layer}.w", parameter="h.{layer}"),
        NameRule(leaf="l.0.w", parameter="first"),
    )
    with pytest.raises(ConfigError, match=r"'l.0.w' is matched by several rules"):
        find_places("l.0.w", (4,), name_map)


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({"parameter": "{layer}", "layer_axis": 1}, (4,), "no axis 1"),
        ({"parameter": "{layer}", "layer_axis": 1}, (4, 0), "no layer"),
        ({"parameter": "{layer}", "layer_axis": 1, "layers": 3}, (4, 2), "3 layers"),
        ({"parameter": "w", "transpose": True}, (4,), "holds matrices"),
        ({"parameter": "{layer}", "layer_axis": 0, "transpose": True}, (4, 2), "holds matrices"),
    ],
)
def test_a_shape_that_is_not_the_rules(fields, shape, message):
    with pytest.raises(TreeError, match=message):
        find_places("ln.w", shape, make_map(leaf="ln.w", **fields))


def test_parameters_that_do_not_fit():
    places = find_places("ln", (4, 2), make_map(leaf="ln", parameter="{layer}.w", layer_axis=1))
    whole = {"0.w": np.ones(4), "1.w": np.ones(4), "other": np.ones(9)}
    assert assemble(places, whole, (4, 2)).shape == (4, 2)
    with pytest.raises(TreeError, match=r"'ln' needs the parameters \['1.w'\]"):
        assemble(places, {"0.w": np.ones(4)}, (4, 2))
    with pytest.raises(TreeError, match=r"'1.w' has shape \(1,\); the leaf 'ln' .* holds \(4,\)"):
        assemble(places, whole | {"1.w": np.ones(1)}, (4, 2))
