"""Norms in trees of any shape, naming and order."""

import string

import jax
import jax.numpy as jnp
from hypothesis import given, settings
from hypothesis import strategies as st

import lntune_jax as lnt
from lntune_jax.paths import flatten
from tests.support.traced import LAYER_NORMS, RMS_NORMS, shape

CONFIG = lnt.LNTuningConfig()
X = shape(4, 8)

names = st.text(string.ascii_lowercase, min_size=1, max_size=3)


@st.composite
def scrambled_trees(draw):
    """The leaves of several norms and dense layers, each at a random place of a random tree."""
    norms = draw(st.lists(st.sampled_from((*LAYER_NORMS, *RMS_NORMS)), min_size=1, max_size=3))
    width = {"a": shape(8), "b": shape(8), "k": shape(8, 8), "l": shape(8)}
    leaves = [
        (number, letter)
        for number, norm in enumerate(norms)
        for letter in ("abkl" if norm in LAYER_NORMS else "akl")
    ]
    order = draw(st.permutations(leaves))
    places = {}
    for number, leaf in enumerate(order):
        path = (*draw(st.lists(names, max_size=3)), f"{draw(names)}{number}")
        places[leaf] = path
    flat = {"/".join(path): width[letter] for (_, letter), path in places.items()}
    return norms, places, draw(st.sampled_from([flat, nest(places, width), tuple_of(flat)]))


def nest(places, width):
    tree = {}
    for (_, letter), path in places.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = width[letter]
    return tree


def tuple_of(flat):
    return tuple({key: leaf} for key, leaf in flat.items())


@given(scrambled_trees())
@settings(max_examples=25)
def test_names_nesting_and_order_play_no_part(drawn):
    norms, places, tree = drawn
    flat = {leaf.path[-1]: leaf.path for leaf in flatten(tree)[0]}
    at = {leaf: ".".join(flat[path[-1]]) for leaf, path in places.items()}

    def call(tree, x):
        values = {".".join(leaf.path): leaf.value for leaf in flatten(tree)[0]}
        for number, norm in enumerate(norms):
            own = {letter: values[name] for (i, letter), name in at.items() if i == number}
            x = jnp.tanh(norm(own, x @ own["k"] + own["l"]))
        return x

    found = lnt.discover_norms(call, tree, X)
    expected = {name for (_, letter), name in at.items() if letter in "ab"}
    assert set(found) == expected
    assert {leaf.path for leaf in found.norms if leaf.role == "bias"} == {
        name for (_, letter), name in at.items() if letter == "b"
    }
    trainable, frozen = lnt.partition_params(tree, CONFIG, norms=found)
    assert set(trainable) == expected
    assert jax.tree.structure(lnt.merge_params(trainable, frozen)) == jax.tree.structure(tree)
