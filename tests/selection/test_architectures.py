"""The default targets against what transformers and PEFT say, from the committed reference file.

make_architectures.py wrote it; tests/parity/test_live_architectures.py checks it.
"""

import json
import math

import jax
import jax.numpy as jnp
import pytest

import lntune_jax as lnt
from lntune_jax.selection.architectures import (
    DEFAULT_TARGETS,
    MODULES_TO_SAVE,
    OUR_TARGETS,
    PEFT_TARGETS,
)
from tests.support.paths import ROOT

FACTS = json.loads((ROOT / "tests/reference/architectures.json").read_text())
VERSIONS = FACTS.pop("versions")
WITH_PEFT = [name for name, fact in FACTS.items() if fact["peft"]]
WITHOUT_PEFT = [name for name in FACTS if name not in WITH_PEFT]

# The norms that PEFT's default leaves out, by the last name of their module.
LEFT_OUT = {
    "bloom": {"word_embeddings_layernorm"},
    "llava": {"pre_layrnorm", "layer_norm1", "layer_norm2", "post_layernorm"},
    "llava: tied embeddings": {"pre_layrnorm", "layer_norm1", "layer_norm2", "post_layernorm"},
    "bart": {"layernorm_embedding"},
    "bart: sequence classifier": {"layernorm_embedding"},
    "gpt2: cross attention": {"ln_cross_attn"},
    "blip-2": {"layer_norm1", "layer_norm2", "post_layernorm"},
    "blip-2: t5": {"layer_norm1", "layer_norm2", "post_layernorm", "layer_norm"},
    "falcon: new decoder": {"ln_attn", "ln_mlp"},
    "phi: query and key norms": {"q_layernorm", "k_layernorm"},
    "gemma3_text": {"q_norm", "k_norm"},
    "qwen2": {"input_layernorm", "norm"},
    "qwen3": {"input_layernorm", "norm", "q_norm", "k_norm"},
}


def flatten(tree, prefix=""):
    """Nested dicts as a flat dict of dotted names."""
    flat = {}
    for name, value in tree.items():
        inner = isinstance(value, dict)
        flat |= flatten(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return flat


def to_shapes(tree):
    """The parameters of a model in the reference file as abstract arrays, nested as they are."""
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(tuple(shape), jnp.float32),
        tree,
        is_leaf=lambda node: isinstance(node, list),
    )


def get_flat(name):
    """A state dict: every parameter under all its names."""
    return to_shapes(flatten(FACTS[name]["parameters"]))


def get_nested(name):
    return to_shapes(FACTS[name]["parameters"])


def get_flat_with_buffers(name):
    """What `torchax.extract_jax` gives: parameters, a tied one once, and buffers among them."""
    fact = FACTS[name]
    buffers = {
        path: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
        for path, (dtype, *shape) in flatten(fact["buffers"]).items()
    }
    return {k: v for k, v in get_flat(name).items() if k not in fact["tied"]} | buffers


FORMS = {
    "flat": get_flat,
    "nested": get_nested,
    "with buffers, ties once": get_flat_with_buffers,
}


def find_norm_modules(name):
    return {path for paths in FACTS[name]["norms"].values() for path in paths}


def find_norm_leaves(name):
    modules = find_norm_modules(name)
    return {path for path in get_flat(name) if path.rpartition(".")[0] in modules}


def find_left_out(name):
    """The last names of the norms that PEFT's default leaves out."""
    missed = find_norm_modules(name) - FACTS[name]["peft"]["modules"].keys()
    return {path.rpartition(".")[2] for path in missed}


def select(tree, **fields):
    """The trainable leaves: path to number of parameters."""
    trainable = lnt.partition_params(tree, lnt.LNTuningConfig(**fields)).trainable
    return {path: math.prod(leaf.shape) for path, leaf in trainable.items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", WITH_PEFT)
def test_the_default_is_what_peft_selects(name, form):
    fact = FACTS[name]
    tree = FORMS[form](name)
    chosen = select(tree, model_type=fact["model_type"])
    expected = set(fact["peft"]["trainable"])
    if form.endswith("ties once"):
        expected -= fact["tied"].keys()
    else:
        assert sum(chosen.values()) == fact["peft"]["count"]
    assert set(chosen) == expected


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", WITHOUT_PEFT)
def test_the_default_is_every_norm_by_module_type_where_peft_has_none(name, form):
    chosen = select(FORMS[form](name), model_type=FACTS[name]["model_type"])
    assert set(chosen) == find_norm_leaves(name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FACTS)
def test_without_a_model_type_every_norm_by_module_type_trains(name, form):
    assert set(select(FORMS[form](name))) == find_norm_leaves(name)


@pytest.mark.parametrize("name", WITH_PEFT)
def test_what_the_default_of_peft_leaves_out(name):
    assert find_left_out(name) == LEFT_OUT.get(name, set())


def test_llava_is_the_only_default_of_peft_with_modules_that_are_no_norms():
    saved = {}
    for name in WITH_PEFT:
        others = FACTS[name]["peft"]["modules"].keys() - find_norm_modules(name)
        if others:
            model_type = FACTS[name]["model_type"]
            saved.setdefault(model_type, set()).update(p.rpartition(".")[2] for p in others)
    assert saved == {model_type: set(modules) for model_type, modules in MODULES_TO_SAVE.items()}


def test_tied_embeddings_of_llava_train_under_each_name_that_the_tree_holds():
    name = "llava: tied embeddings"
    embedding = "model.language_model.embed_tokens.weight"
    assert FACTS[name]["tied"] == {"lm_head.weight": embedding}
    assert {"lm_head.weight", embedding} < set(select(get_flat(name), model_type="llava"))
    once = set(select(get_flat_with_buffers(name), model_type="llava"))
    assert embedding in once
    assert "lm_head.weight" not in once


def test_each_architecture_has_a_model():
    assert {fact["model_type"] for fact in FACTS.values()} == DEFAULT_TARGETS.keys()
    assert {FACTS[name]["model_type"] for name in WITH_PEFT} == PEFT_TARGETS.keys()
    assert not PEFT_TARGETS.keys() & OUR_TARGETS.keys()


@pytest.mark.parametrize("model_type", DEFAULT_TARGETS)
def test_each_default_target_names_a_norm_of_some_model(model_type):
    names = [name for name, fact in FACTS.items() if fact["model_type"] == model_type]
    paths = [f".{path}." for name in names for path in find_norm_modules(name)]
    targets = DEFAULT_TARGETS[model_type]
    assert [t for t in targets if not any(f".{t}." in path for path in paths)] == []
    assert len(set(targets)) == len(targets)


def write_codes(words):
    return ", ".join(f"`{word}`" for word in words)


def write_row(model_type):
    """The row of an architecture in docs/architectures.md."""
    names = [name for name, fact in FACTS.items() if fact["model_type"] == model_type]
    cells = [f"`{model_type}`", write_codes(DEFAULT_TARGETS[model_type])]
    if model_type in PEFT_TARGETS:
        cells.append(write_codes(sorted(set().union(*map(find_left_out, names)))) or "none")
    return f"| {' | '.join(cells)} |"


def test_the_table_in_the_documentation_is_the_one_in_the_code():
    lines = (ROOT / "docs/architectures.md").read_text().splitlines()
    expected = [write_row(model_type) for model_type in DEFAULT_TARGETS]
    rows = [line for line in lines if line.startswith("| `")]
    written = [row for row in rows if not row.startswith("| `model_type`")]
    assert written == expected, "the rows should be:\n" + "\n".join(expected)
    versions = "transformers {transformers}, PEFT {peft}".format(**VERSIONS)
    assert versions in " ".join(lines)
