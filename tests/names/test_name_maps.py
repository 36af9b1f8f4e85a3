"""Name maps: every table against listings of real models, and arrays there and back."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lntune_jax.errors import ConfigError, TreeError
from lntune_jax.names.maps import (
    NameMap,
    NameRule,
    Place,
    assemble,
    find_places,
    get_name_map,
    take,
)
from lntune_jax.names.tables import NAME_MAPS
from lntune_jax.paths import join
from lntune_jax.selection.norms import find_norms
from tests.support.paths import REFERENCE, ROOT

LISTINGS = [
    pytest.param(model, id=f"{path.stem}-{model['model']}")
    for path in sorted((REFERENCE / "name_maps").glob("*.json"))
    for model in json.loads(path.read_text())["models"]
]
GEMMAS = {name: table for name, table in NAME_MAPS.items() if "gemma" in name}
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]


def make_map(*rules, **fields):
    return NameMap(source="test", model_types=("llama",), rules=rules or (NameRule(**fields),))


# --- the tables against what the libraries and transformers really hold ---


def test_every_library_has_a_listing():
    listed = {param.values[0]["name_map"] for param in LISTINGS}
    # The others differ from one that is listed by the layer axis, the size or `scan_layers` only.
    derived = {
        "maxtext_gemma3_27b",
        "maxtext_gemma3_27b_axis0",
        "maxtext_gemma3_4b_axis0",
        "maxtext_gemma3_12b_axis0",
        "maxtext_gemma_axis0",
        "maxtext_mistral_axis0",
        "maxtext_mistral_unscanned",
        "maxtext_qwen2_axis0",
        "maxtext_qwen2_unscanned",
        "maxtext_qwen3_axis0",
    }
    assert listed | derived == NAME_MAPS.keys()
    assert not listed & derived


@pytest.mark.parametrize("model", LISTINGS)
def test_real_leaves_map_one_to_one(model):
    name_map = NAME_MAPS[model["name_map"]]
    parameters = {name: tuple(shape) for name, shape in model["parameters"].items()}
    if model["name_map"].startswith("maxtext_gemma"):
        del parameters["model.embed_tokens.weight"]  # scaled by sqrt(width): not only a name
    found = {}
    for path, shape in model["leaves"].items():
        leaf = path.replace("/", ".")
        places = find_places(leaf, tuple(shape), name_map)
        assert places is not None or "norm" not in leaf, leaf
        for place in places or ():
            value = np.broadcast_to(np.float32(1), shape)
            assert place.parameter not in found
            found[place.parameter] = take(replace(place, offset=0.0), value[...]).shape
    assert found == parameters


@pytest.mark.parametrize("model", LISTINGS)
def test_norms_found_in_the_tree_are_those_of_the_table(model):
    leaves = {
        path.removeprefix("params."): jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
        for path, shape in model["leaves"].items()
    }
    found = {without_numbers(join(module)) for module in find_norms(leaves)}
    table = NAME_MAPS[model["name_map"]]
    mapped = {without_numbers(rule.leaf) for rule in table.rules if "norm" in rule.leaf}
    mapped = {leaf.rpartition(".")[0] for leaf in mapped}
    assert found == mapped


def without_numbers(module):
    return "".join(c for c in module.replace("{layer}", "") if not c.isdigit())


def test_maps_of_any_size_take_any_number_of_layers():
    places = find_places("decoder.layers.pre_ffw_norm_global.scale", (8, 13), maxtext_gemma2())
    assert [place.parameter.split(".")[2] for place in places] == [
        str(2 * i + 1) for i in range(13)
    ]


def maxtext_gemma2():
    return NAME_MAPS["maxtext_gemma2"]


def test_gemma3_in_blocks_of_six_with_a_remainder():
    name_map = NAME_MAPS["maxtext_gemma3_27b"]
    places = find_places("decoder.layers.layers_5.pre_ffw_norm.scale", (4, 10), name_map)
    assert places[-1].parameter == "model.layers.59.pre_feedforward_layernorm.weight"
    leaf = "decoder.layers_remainder.layers_1.pre_ffw_norm.scale"
    (place,) = find_places(leaf, (4,), name_map)
    assert place.parameter == "model.layers.61.pre_feedforward_layernorm.weight"


@pytest.mark.parametrize(
    ("leaf", "shape"),
    [
        ("decoder.layers.layers_5.pre_ffw_norm.scale", (4, 8)),  # the 12B
        ("decoder.layers.layers_5.pre_ffw_norm.scale", (10, 4)),  # param_scan_axis=0
        ("decoder.layers_remainder.layers_2.pre_ffw_norm.scale", (4,)),
    ],
)
def test_a_map_of_one_size_refuses_another(leaf, shape):
    with pytest.raises(TreeError, match="another size"):
        find_places(leaf, shape, NAME_MAPS["maxtext_gemma3_27b"])


# --- which Gemma holds w, and which 1 + w ---


def normalise(x):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def run_transformers_gemma(x, weight):
    return normalise(x) * (1.0 + weight)


def run_one_plus(x, scale):  # Tunix, KerasHub, google-deepmind
    return normalise(x) * (1 + scale)


def run_maxtext(x, scale):  # RMSNorm with its default scale_offset of 0
    return normalise(x) * (scale + 0.0)


@pytest.mark.parametrize("name", GEMMAS)
def test_gemma_norms_give_the_same_output(name):
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(3, 8)), rng.normal(scale=0.3, size=8)
    run = run_maxtext if name.startswith("maxtext") else run_one_plus
    rules = [rule for rule in GEMMAS[name].rules if "norm" in rule.leaf]
    assert len(rules) > 2
    for rule in rules:
        place = Place("leaf", "parameter", offset=rule.offset)
        scale = assemble([place], {"parameter": weight}, (8,))
        np.testing.assert_allclose(run(x, scale), run_transformers_gemma(x, weight), rtol=1e-12)
        np.testing.assert_allclose(take(place, scale), weight, rtol=0, atol=3e-16)


def test_only_norms_of_maxtext_gemmas_are_shifted():
    for name, table in NAME_MAPS.items():
        shifted = {rule.leaf for rule in table.rules if rule.offset}
        expected = {rule.leaf for rule in table.rules} if name in MAXTEXT_GEMMAS else set()
        assert shifted == expected, name


MAXTEXT_GEMMAS = [name for name in GEMMAS if name.startswith("maxtext")]


def test_the_first_gemma_calls_its_second_norm_otherwise():
    for library, leaf in [
        ("tunix", "layers.0.pre_ffw_norm.scale"),
        ("keras_hub", "decoder_block_0.pre_ffw_norm.scale"),
        ("deepmind", "layer_0.pre_ffw_norm.scale"),
    ]:
        (first,) = find_places(leaf, (4,), NAME_MAPS[f"{library}_gemma"])
        (second,) = find_places(leaf, (4,), NAME_MAPS[f"{library}_gemma2"])
        assert first.parameter == "model.layers.0.post_attention_layernorm.weight"
        assert second.parameter == "model.layers.0.pre_feedforward_layernorm.weight"


# --- there and back ---


@st.composite
def stacks(draw):
    """A rule for a stacked leaf, its shape and its values, any bits among them."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    axis = draw(st.none() | st.integers(0, len(shape) - 1))
    matrix = len(shape) - (axis is not None) == 2 and draw(st.booleans())
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    size = int(np.prod(shape)) * dtype.itemsize
    value = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)
    number = "" if axis is None else ".{layer}"
    first, stride = (
        (0, 1) if axis is None else draw(st.tuples(st.integers(0, 5), st.integers(1, 3)))
    )
    rule = NameRule(
        leaf="blocks.ln.scale",
        parameter=f"h{number}.weight",
        layer_axis=axis,
        transpose=matrix,
        first=first,
        stride=stride,
    )
    return rule, value


@given(stacks())
def test_split_and_joined_again_bit_for_bit(stack):
    rule, value = stack
    places = find_places(rule.leaf, value.shape, make_map(rule))
    arrays = {place.parameter: take(place, value) for place in places}
    assert (
        len(arrays)
        == len(places)
        == (1 if rule.layer_axis is None else value.shape[rule.layer_axis])
    )
    result = assemble(places, arrays, value.shape)
    assert result.dtype == value.dtype
    assert result.tobytes() == value.tobytes()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_jax_arrays_stay_on_their_device(dtype):
    value = jnp.arange(12, dtype=dtype).reshape(4, 3)
    places = find_places(
        "ln.w", value.shape, make_map(leaf="ln.w", parameter="{layer}", layer_axis=1)
    )
    parts = {place.parameter: take(place, value) for place in places}
    assert all(isinstance(part, jax.Array) and part.dtype == dtype for part in parts.values())
    assert (assemble(places, parts, value.shape) == np.asarray(value)).all()
    traced = jax.jit(lambda x: take(replace(places[1], offset=1.0), x))(value)
    assert (traced == value[:, 1] - 1).all()
    assert traced.dtype == dtype


def test_a_matrix_is_transposed_in_every_layer():
    rule = NameRule(leaf="k", parameter="{layer}.w", layer_axis=1, transpose=True)
    value = np.arange(24.0).reshape(2, 3, 4)
    places = find_places("k", value.shape, make_map(rule))
    np.testing.assert_array_equal(take(places[2], value), value[:, 2].T)


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(np.float32, 2.0**-24), (ml_dtypes.bfloat16, 2.0**-8), (np.float16, 2.0**-11)],
)
def test_a_shifted_value_is_off_by_half_a_spacing_at_most(dtype, bound):
    weight = np.linspace(-0.49, 0.99, 5001).astype(dtype)
    place = Place("leaf", "parameter", offset=1.0)
    back = take(place, assemble([place], {"parameter": weight}, weight.shape))
    error = np.abs(back.astype(np.float64) - weight.astype(np.float64)).max()
    assert 0 < error <= bound
    # In float32 the sum with a 16-bit weight is exact as far as the weight's own bits reach.
    scale = assemble([place], {"parameter": weight}, weight.shape, dtype=np.float64)
    assert (take(place, scale).astype(dtype) == weight).all()


def test_the_dtype_is_the_arrays_own_or_the_one_asked_for():
    place = Place("leaf", "parameter")
    arrays = {"parameter": np.ones(3, ml_dtypes.bfloat16)}
    assert assemble([place], arrays, (3,)).dtype == ml_dtypes.bfloat16
    assert assemble([place], arrays, (3,), dtype=jnp.float32).dtype == np.float32


# --- what finds no rule, and what is refused ---


def test_the_map_in_the_guide():
    guide = (ROOT / "docs" / "name-maps.md").read_text()
    block = guide.split("## A map of your own")[1].split("```")[1].removeprefix("python\n")
    names = {}
    exec(compile(block, "name-maps.md", "exec"), names)
    stack = find_places("blocks.ln_1.scale", (10, 4), names["name_map"])
    tail = find_places("tail_1.ln_1.scale", (4,), names["name_map"])
    assert [place.parameter for place in (*stack, *tail)][-2:] == [
        "transformer.h.9.ln_1.weight",
        "transformer.h.11.ln_1.weight",
    ]
    with pytest.raises(ConfigError, match="both give"):
        exec(compile(block.replace("layers=10", "layers=11"), "name-maps.md", "exec"), names)


def test_every_map_is_in_the_guide():
    guide = (ROOT / "docs" / "name-maps.md").read_text()
    for name in NAME_MAPS:
        assert f"`{name.removesuffix('_axis0').removesuffix('_unscanned')}" in guide


def test_paths_with_and_without_the_params_collection():
    name_map = NAME_MAPS["deepmind_gemma2"]
    (place,) = find_places("params.layer_11.pre_attention_norm.scale", (4,), name_map)
    assert place.leaf == "params.layer_11.pre_attention_norm.scale"
    assert place.parameter == "model.layers.11.input_layernorm.weight"
    written_so = make_map(leaf="params.final.scale", parameter="norm.weight")
    assert find_places("final.scale", (4,), written_so)


@pytest.mark.parametrize(
    "leaf",
    [
        "layers.01.input_layernorm.w",
        "layers.x.input_layernorm.w",
        "layers.-1.input_layernorm.w",
        "layers.0xinput_layernorm.w",
        "model.layers.0.input_layernorm.w",
        "layers.0.input_layernorm.w.more",
        "layers.٣.input_layernorm.w",
    ],
)
def test_no_rule_for_another_path(leaf):
    assert find_places(leaf, (4,), NAME_MAPS["tunix_llama3"]) is None


def test_a_name_a_map_or_nothing():
    assert get_name_map(None) is None
    assert get_name_map("tunix_llama3") is NAME_MAPS["tunix_llama3"]
    own = make_map(leaf="a", parameter="b")
    assert get_name_map(own) is own
    with pytest.raises(ConfigError, match=r"name_map='maxtex_llama' .*'maxtext_llama'"):
        get_name_map("maxtex_llama")
    with pytest.raises(ConfigError, match="name_map=3"):
        get_name_map(3)
