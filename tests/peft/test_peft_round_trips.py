"""There and back: for each kind of head, saved module and target the same tensors and keys.

From our side (export, import, export) and from PEFT's (a file by hand, imported, exported).
"""

import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import lntune_jax as lnt
from lntune_jax.errors import AdapterError, ConfigError
from lntune_jax.peft import NameMap, NameRule
from tests.support import peft_files as files

WIDTH, CLASSES = 8, 3


def draw(*shape):
    return np.random.default_rng(zlib.crc32(repr(shape).encode())).standard_normal(shape, "f4")


def norm():
    return {"scale": draw(WIDTH), "bias": draw(WIDTH)}


def dense(outputs=WIDTH):
    return {"kernel": draw(WIDTH, outputs), "bias": draw(outputs)}


def make_tree(**heads):
    """A small encoder, and what stands beside it."""
    layers = {
        str(i): {"norm1": norm(), "mlp": {"fc": dense(), "final_norm": norm()}} for i in range(2)
    }
    embed = {"wte": {"embedding": draw(16, WIDTH)}, "ln_embed": norm()}
    return {"base": {"embed": embed, "layers": layers, "ln_f": norm()}, **heads}


LAYER = ["layers.0", "layers.1"]
# What stands beside the encoder, and the config.
CASES = {
    "every norm": ({}, {}),
    "norms by name": ({}, {"target_modules": ["norm1", "ln_f"]}),
    "a string": ({}, {"target_modules": r".*\.norm1"}),
    "an expression in a list": ({}, {"target_modules": [r"base\.layers\.[01]\..*norm"]}),
    "containers": ({}, {"target_modules": LAYER}),
    "one layer": ({}, {"target_modules": ["layers.1"]}),
    "all but one": (
        {},
        {"target_modules": ["norm1", "final_norm"], "exclude_modules": ["0.norm1"]},
    ),
    "a classifier": ({"classifier": dense(CLASSES)}, {"modules_to_save": ["classifier"]}),
    "a task's classifier": (
        {"classifier": dense(CLASSES)},
        {"modules_to_save": ["classifier"], "task_type": "SEQ_CLS"},
    ),
    "a task's score": (
        {"score": {"kernel": draw(WIDTH, CLASSES)}},
        {"modules_to_save": ["score"], "task_type": "SEQ_CLS"},
    ),
    "a span head": (
        {"qa_outputs": dense(2)},
        {"modules_to_save": ["qa_outputs"], "task_type": "QUESTION_ANS"},
    ),
    "two layers in a head": (
        {"classifier": {"dense": dense(), "out_proj": dense(CLASSES)}},
        {"modules_to_save": ["classifier"], "task_type": "TOKEN_CLS"},
    ),
    "a head with a norm of its own": (
        {"classifier": {"norm": norm(), "out": dense(CLASSES)}},
        {"modules_to_save": ["classifier"]},
    ),
    "a part of a module": (
        {"head": {"out": dense(CLASSES)}},
        {"modules_to_save": ["head.out"], "target_modules": ["ln_f"]},
    ),
    "a convolution": (
        {"head": {"kernel": draw(3, 3, 4, 6), "bias": draw(6)}},
        {"modules_to_save": ["head"]},
    ),
    "a temperature": ({"head": {"temperature": draw()}}, {"modules_to_save": ["head"]}),
    "an embedding and an output": (
        {"lm_head": {"kernel": draw(WIDTH, 16)}},
        {"modules_to_save": ["wte", "lm_head"], "task_type": "CAUSAL_LM"},
    ),
    "an embedding without an output": (
        {},
        {"modules_to_save": ["wte"], "task_type": "FEATURE_EXTRACTION"},
    ),
    "a norm saved whole": ({}, {"modules_to_save": ["ln_f"], "target_modules": ["norm1"]}),
    "two entries, one in the other": (
        {"head": {"out": dense(CLASSES)}},
        {"modules_to_save": ["head", "head.out"]},
    ),
}


def read(path):
    """The bytes of each tensor by its key, with types and shapes; and the config."""
    tensors = load_file(path / "adapter_model.safetensors")
    found = {key: (x.dtype.name, x.shape, x.tobytes()) for key, x in tensors.items()}
    return found, json.loads((path / "adapter_config.json").read_text())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_from_our_side(tmp_path, case, dtype):
    heads, fields = CASES[case]
    cast = jax.tree.map(lambda leaf: leaf.astype(dtype), make_tree(**heads))
    config = lnt.LNTuningConfig(**fields, param_dtype=None)
    trainable, _ = lnt.partition_params(cast, config)
    tuned = {name: value * value.dtype.type(-3) for name, value in trainable.items()}
    first = lnt.export_peft(tmp_path / "first", tuned, config, base=cast)

    merged = lnt.import_peft(first, cast)
    again, _ = lnt.partition_params(merged, config)
    for name, value in tuned.items():
        assert again[name].dtype == value.dtype
        assert again[name].tobytes() == value.tobytes()
    second = lnt.export_peft(tmp_path / "second", again, config, base=cast)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (first / file).read_bytes() == (second / file).read_bytes()

    # As leaves: what the file's own config selects here, widened where it is narrower.
    leaves, own = lnt.load_peft(first, cast)
    assert leaves.keys() == tuned.keys()
    third = lnt.export_peft(tmp_path / "third", leaves, own, base=cast)
    one, two = read(first), read(third)
    assert one[0].keys() == two[0].keys()
    assert one[1] == two[1]
    if dtype in ("float32", "float64"):
        assert one[0] == two[0]


ODD = np.array([-0.0, 0.0, 1e-45, -1e-45, 3.4028235e38, 1.1754942e-38, 1 + 2**-23, -1], "f4")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_cross_bit_for_bit(tmp_path, dtype):
    with np.errstate(over="ignore"):
        values = ODD.astype(dtype)
    values = np.where(np.isfinite(values.astype("f4")), values, np.zeros((), dtype)).astype(dtype)
    key = files.PREFIX + "base.ln_f.ln_tuning_layers."
    tensors = {key + "weight": values, key + "bias": values[::-1].copy()}
    path = files.write_adapter(tmp_path / "peft", tensors, target_modules=["ln_f"])
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), make_tree())
    config = lnt.LNTuningConfig.from_pretrained(path).replace(param_dtype=None)
    trainable, _ = lnt.partition_params(lnt.import_peft(path, params), config)
    assert read(lnt.export_peft(tmp_path / "ours", trainable, config))[0] == read(path)[0]
    leaves, own = lnt.load_peft(path, params)
    wide = load_file(lnt.export_peft(tmp_path / "wide", leaves, own) / "adapter_model.safetensors")
    for name, value in tensors.items():
        assert wide[name].tobytes() == value.astype("f4").tobytes()


@pytest.mark.parametrize("payload", [0x7FC00000, 0x7F800001, 0xFFC12345])
def test_a_nan_is_refused_whatever_its_bits(tmp_path, payload):
    values = np.ones(WIDTH, "f4")
    values.view("u4")[3] = payload
    with pytest.raises(AdapterError, match=r"'base\.ln_f\.scale' \(1 of 8 values\).*diverged"):
        lnt.export_peft(tmp_path / "ours", {"base.ln_f.scale": values}, lnt.LNTuningConfig())
    key = files.PREFIX + "base.ln_f.ln_tuning_layers."
    tensors = {key + "weight": values, key + "bias": np.ones(WIDTH, "f4")}
    path = files.write_adapter(tmp_path / "peft", tensors, target_modules=["ln_f"])
    with pytest.raises(AdapterError, match=r"not finite: .*base\.ln_f.*training has diverged"):
        lnt.import_peft(path, make_tree())


def test_fields_that_are_not_known_and_none_that_is_lost(tmp_path):
    fields = {"new": {"a": [1, None, "é"]}, "auto_mapping": None, "peft_version": "0.99.1"}
    fields |= {"revision": "v1", "base_model_name_or_path": "org/base", "task_type": "X"}
    key = files.PREFIX + "base.ln_f.ln_tuning_layers."
    tensors = {key + "weight": draw(WIDTH), key + "bias": draw(WIDTH)}
    path = files.write_adapter(tmp_path / "peft", tensors, target_modules=["ln_f"], **fields)
    out = lnt.export_peft(tmp_path / "ours", *lnt.load_peft(path, make_tree()))
    (one, before), (two, after) = read(path), read(out)
    assert one == two
    assert {name: after[name] for name in before} == before
    assert all(after[name] is None for name in after.keys() - before.keys())


NAMES = [
    "modèle",
    "my model",
    "a(b)[c]*",
    "default",
    "modules_to_save",
    "ln_tuning_layers",
    "base_layer",
    "original_module",
    "base_model.model",
    "0",
    "norm",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_flat", [False, True])
def test_modules_of_odd_names(tmp_path, name, is_flat):
    params = {"x": {name: {"norm": norm(), "head": dense(CLASSES)}}, "head": dense(CLASSES)}
    if is_flat:
        leaves = jax.tree_util.tree_flatten_with_path(params)[0]
        params = {".".join(step.key for step in path): leaf for path, leaf in leaves}
    config = lnt.LNTuningConfig(modules_to_save=[f"x.{name}.head" if "(" not in name else "head"])
    trainable, frozen = lnt.partition_params(params, config)
    tuned = {path: leaf + 1 for path, leaf in trainable.items()}
    first = lnt.export_peft(tmp_path / "first", tuned, config, base=params)
    found = jax.tree.leaves(lnt.import_peft(first, params))
    for one, two in zip(found, jax.tree.leaves(lnt.merge_params(tuned, frozen)), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_name_that_no_file_can_hold_is_refused(tmp_path):
    leaves = {"x\ud800.norm.scale": draw(WIDTH)}
    with pytest.raises(AdapterError, match=r"not Unicode: 'x\\ud800\.norm\.scale'"):
        lnt.export_peft(tmp_path / "a", leaves, lnt.LNTuningConfig())


def test_a_typo_in_a_name_map(tmp_path):
    tuned, config = {"norm.scale": draw(WIDTH)}, lnt.LNTuningConfig()
    with pytest.raises(ConfigError, match=r"'tunix_lama3' is not known.*did you mean 'tunix_llam"):
        lnt.export_peft(tmp_path / "a", tuned, config, name_map="tunix_lama3")
    rules = (NameRule(leaf="nrm.scale", parameter="model.norm.weight"),)
    name_map = NameMap(source="own.py", model_types=("llama",), rules=rules)
    with pytest.raises(AdapterError, match=r"name_map has no rule for 'norm\.scale'.*'nrm\.scale'"):
        lnt.export_peft(tmp_path / "a", tuned, config, name_map=name_map)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("count", [2**20, 2**40, 2**63, 2**64 - 1])
def test_a_header_that_says_it_is_huge(tmp_path, count):
    path = files.write_adapter(tmp_path)
    (path / "adapter_model.safetensors").write_bytes(count.to_bytes(8, "little") + b"{" * 100)
    with pytest.raises(AdapterError, match="is damaged or cut short"):
        lnt.import_peft(path, files.make_params())


def test_the_same_leaves_give_the_same_bytes(tmp_path):
    params = make_tree(classifier=dense(CLASSES))
    config = lnt.LNTuningConfig(modules_to_save=["classifier"])
    trainable, _ = lnt.partition_params(params, config)
    first = lnt.export_peft(tmp_path / "first", trainable, config)
    second = lnt.export_peft(tmp_path / "second", dict(reversed(trainable.items())), config)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (first / file).read_bytes() == (second / file).read_bytes()


def test_numbers_of_other_byte_orders_are_named(tmp_path):
    with pytest.raises(AdapterError, match=r"'norm\.scale' \(>f4\)"):
        lnt.export_peft(tmp_path / "a", {"norm.scale": np.ones(4, ">f4")}, lnt.LNTuningConfig())


def test_a_selection_knows_what_else_peft_keeps(tmp_path):
    """A config alone does not, and PEFT refuses the file when it loads it."""
    params = make_tree(head=dense(CLASSES), aux_head=dense())
    config = lnt.LNTuningConfig(modules_to_save=["head"])
    selection = lnt.select(params, config)
    trainable, _ = selection.partition(params)
    with pytest.raises(AdapterError, match=r"wants 'aux_head\.bias', .*pass base=params"):
        lnt.export_peft(tmp_path / "a", trainable, selection)
    path = lnt.export_peft(tmp_path / "a", trainable, selection, base=params)
    assert files.PREFIX + "aux_head.weight" in read(path)[0]
    lnt.import_peft(path, params)

    part = {name: value for name, value in trainable.items() if "layers.1" not in name}
    with pytest.raises(AdapterError, match=r"missing from trainable: 'base\.layers\.1"):
        lnt.export_peft(tmp_path / "b", part, selection)
    norms = lnt.select(params, lnt.LNTuningConfig(target_modules=["norm1"]))
    found = lnt.export_peft(tmp_path / "c", norms.partition(params)[0], norms)
    assert len(read(found)[0]) == 4


def test_a_selection_keeps_its_name_map(tmp_path):
    rule = NameRule(leaf="stack.norm.scale", parameter="layers.{layer}.norm.weight", layer_axis=0)
    name_map = NameMap(source="own.py", model_types=("llama",), rules=(rule,))
    params = {"stack": {"norm": {"scale": draw(2, WIDTH)}}}
    selection = lnt.select(params, lnt.LNTuningConfig(target_modules=["norm"]), name_map=name_map)
    trainable, _ = selection.partition(params)
    path = lnt.export_peft(tmp_path / "a", trainable, selection)
    again = lnt.import_peft(path, params, name_map=name_map)
    np.testing.assert_array_equal(again["stack"]["norm"]["scale"], params["stack"]["norm"]["scale"])


@pytest.mark.parametrize("param_dtype", ["float32", None])
def test_layers_of_several_types_in_one_stack(tmp_path, param_dtype):
    rule = NameRule(leaf="stack.norm.scale", parameter="layers.{layer}.norm.weight", layer_axis=0)
    name_map = NameMap(source="own.py", model_types=("llama",), rules=(rule,))
    values = {0: draw(WIDTH).astype(jnp.bfloat16), 1: draw(WIDTH).astype("float16")}
    key = files.PREFIX + "layers.{}.norm.ln_tuning_layers.weight"
    tensors = {key.format(i): value for i, value in values.items()}
    path = files.write_adapter(tmp_path, tensors, target_modules=["norm"], param_dtype=param_dtype)
    params = {"stack": {"norm": {"scale": draw(2, WIDTH)}}}
    (leaf,) = lnt.load_peft(path, params, name_map=name_map).trainable.values()
    assert leaf.dtype == np.float32
    for i, value in values.items():
        np.testing.assert_array_equal(leaf[i], value.astype("f4"))
