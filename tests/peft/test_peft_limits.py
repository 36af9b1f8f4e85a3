"""Where PEFT would not mean the same, or a file is hostile: errors, not guesses."""

import struct

import jax
import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.errors import AdapterError, ConfigError, CopiedModuleWarning
from tests.support import peft_files as files

EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
TIED = {EMBED: np.ones((6, 4), "f4"), NORM: np.ones(4, "f4")}
UNTIED = TIED | {HEAD: np.ones((6, 4), "f4")}


def write(path, names, values=2.0, **config):
    key = "base_model.model.{}.ln_tuning_layers.weight"
    tensors = {
        key.format("model.norm") if name == NORM else f"base_model.model.{name}": np.full(
            UNTIED[name].shape, values, "f4"
        )
        for name in names
    }
    return files.write_adapter(path, tensors, target_modules=["norm"], **config)


def test_an_embedding_that_the_output_shares_does_not_cross(tmp_path):
    """PEFT trains a copy and leaves the output; here one leaf is both."""
    config = lnt.LNTuningConfig(target_modules=["norm"], modules_to_save=["embed_tokens"])
    trainable, _ = lnt.partition_params(TIED, config)
    with pytest.raises(AdapterError, match=r"may share.*pass base=params"):
        lnt.export_peft(tmp_path / "a", trainable, config)
    with pytest.raises(AdapterError, match="no output weight of its own"):
        lnt.export_peft(tmp_path / "a", trainable, config, base=TIED)
    path = write(tmp_path / "peft", [EMBED, NORM], modules_to_save=["embed_tokens"])
    with pytest.raises(AdapterError, match="no output weight of its own"):
        lnt.import_peft(path, TIED)
    found = lnt.import_peft(path, UNTIED)
    assert found[EMBED].max() == 2
    assert found[HEAD].max() == 1
    lnt.export_peft(tmp_path / "a", trainable, config, base=UNTIED)
    both = config.replace(modules_to_save=["embed_tokens", "lm_head"])
    lnt.export_peft(tmp_path / "both", lnt.partition_params(UNTIED, both).trainable, both)
    bare = config.replace(task_type="FEATURE_EXTRACTION")
    lnt.export_peft(tmp_path / "b", trainable, bare, base=TIED)


def test_embeddings_that_peft_saves_by_itself_are_imported(tmp_path):
    """`save_embedding_layers` writes them though no field of the config names them."""
    path = write(tmp_path / "peft", [EMBED, NORM])
    with pytest.warns(CopiedModuleWarning, match="embed_tokens"):
        adapter = lnt.load_peft(path, UNTIED)
    assert set(adapter.trainable) == {EMBED, NORM}
    assert adapter.config.modules_to_save == ("model.embed_tokens",)


@pytest.mark.parametrize(
    "modules", [["embeddings"], ["layer"], ["classifier.out_proj"], ["out_proj"]]
)
def test_entries_that_peft_would_nest_or_not_find_are_written_out(tmp_path, modules):
    """PEFT reads the end of a name: "embeddings" is the end of `word_embeddings` too."""
    params = files.make_params()
    dense = {"kernel": np.ones((8, 8), "f4"), "bias": np.ones(8, "f4")}
    params["classifier"] = {"dense": dense, "out_proj": dict(dense)}
    config = lnt.LNTuningConfig(modules_to_save=modules, task_type="SEQ_CLS")
    trainable, _ = lnt.partition_params(params, config)
    path = lnt.export_peft(tmp_path / "peft", trainable, config, base=params)
    written = lnt.LNTuningConfig.from_pretrained(path)
    paths = [name.split(".")[:-1] for name in files_of(path)]
    known = {".".join(path[:end]) for path in paths for end in range(1, len(path) + 1)}
    ends = (*written.modules_to_save, "classifier", "score")
    saved = {module for module in known if module.endswith(ends)}
    assert not any(m.startswith(f"{other}.") for m in saved for other in saved)
    assert not any(m.rpartition(".")[2] == "layer" for m in saved)  # a ModuleList
    restored = lnt.import_peft(path, params)
    jax.tree.map(np.testing.assert_array_equal, restored, params)


def files_of(path):
    from safetensors.numpy import load_file

    keys = load_file(path / "adapter_model.safetensors")
    return [k.removeprefix("base_model.model.").replace(".ln_tuning_layers", "") for k in keys]


def test_a_part_of_a_task_s_head_needs_the_base(tmp_path):
    config = lnt.LNTuningConfig(modules_to_save=["classifier.out_proj"], task_type="SEQ_CLS")
    leaves = {"ln.scale": np.ones(4, "f4"), "classifier.out_proj.bias": np.ones(2, "f4")}
    with pytest.raises(AdapterError, match="saves the head"):
        lnt.export_peft(tmp_path / "peft", leaves, config)


def test_a_path_that_ends_another_one_is_told_apart(tmp_path):
    params = {"layernorm.weight": np.ones(4, "f4"), "stages.0.layernorm.weight": np.ones(4, "f4")}
    config = lnt.LNTuningConfig(target_modules="layernorm")
    trainable, _ = lnt.partition_params(params, config)
    path = lnt.export_peft(tmp_path / "peft", trainable, config, base=params)
    written = lnt.LNTuningConfig.from_pretrained(path)
    assert written.exclude_modules == ("stages.0.layernorm",)
    assert list(lnt.load_peft(path, params).trainable) == ["layernorm.weight"]


@pytest.mark.parametrize(
    ("module", "shape"), [("up_transpose", (2, 2, 3, 4)), ("up", (2, 2, 4, 4))]
)
def test_a_transposed_convolution_is_not_taken_for_a_convolution(tmp_path, module, shape):
    config = lnt.LNTuningConfig(target_modules=["ln"], modules_to_save=[module])
    leaves = {"ln.scale": np.ones(4, "f4"), f"{module}.kernel": np.ones(shape, "f4")}
    with pytest.raises(AdapterError, match=r"layout of .* cannot be known.*name_map"):
        lnt.export_peft(tmp_path / "peft", leaves, config)
    rules = (
        lnt.peft.NameRule(leaf="ln.scale", parameter="ln.weight"),
        lnt.peft.NameRule(leaf=f"{module}.kernel", parameter=f"{module}.weight", axes=(2, 3, 0, 1)),
    )
    name_map = lnt.peft.NameMap(source="a test", model_types=("x",), rules=rules)
    path = lnt.export_peft(tmp_path / "peft", leaves, config, name_map=name_map)
    adapter = lnt.load_peft(path, leaves, name_map=name_map)
    np.testing.assert_array_equal(adapter.trainable[f"{module}.kernel"], leaves[f"{module}.kernel"])


def test_a_scale_that_is_a_parameter_s_own_name_keeps_it(tmp_path):
    config = lnt.LNTuningConfig(target_modules=["ln"], modules_to_save=["layer_scale"])
    leaves = {"ln.weight": np.ones(4, "f4"), "layer_scale.gamma": np.ones(4, "f4")}
    path = lnt.export_peft(tmp_path / "peft", leaves, config)
    assert "layer_scale.gamma" in files_of(path)


def test_norms_that_the_caller_names_are_norms(tmp_path):
    params = {"blk.foo.weight": np.ones(4, "f4"), "fc.weight": np.ones((4, 4), "f4")}
    config = lnt.LNTuningConfig()
    trainable, _ = lnt.partition_params(params, config, norms=["blk.foo"])
    path = lnt.export_peft(tmp_path / "peft", trainable, config, base=params, norms=["blk.foo"])
    adapter = lnt.load_peft(path, params, norms=["blk.foo"])
    assert adapter.config.modules_to_save is None
    assert list(adapter.trainable) == ["blk.foo.weight"]


def test_one_norm_may_be_named_by_a_string(tmp_path):
    params, config = {"blk.foo.weight": np.ones(4, "f4")}, lnt.LNTuningConfig()
    trainable, _ = lnt.partition_params(params, config, norms="blk.foo")
    path = lnt.export_peft(tmp_path / "peft", trainable, config, base=params, norms="blk.foo")
    assert list(lnt.load_peft(path, params, norms="blk.foo").trainable) == ["blk.foo.weight"]
    lnt.save_adapter(tmp_path / "own", trainable, config, base=params, norms="blk.foo")
    lnt.restore_adapter(tmp_path / "own", params)


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ({}, "trainable is an empty dict"),
        ({"ln.scale": None}, "NoneType"),
        ({"ln.scale": 1.0}, "'ln.scale' .float"),
        ({"ln.scale": np.ones(4, "c8")}, "complex64"),
        ({"ln.scale": np.ones(4, "i4")}, "int32"),
        ({"scale": np.ones(4, "f4")}, "lie in no module"),
    ],
)
def test_what_no_adapter_can_hold_is_named(tmp_path, leaves, message):
    with pytest.raises(AdapterError, match=message):
        lnt.export_peft(tmp_path / "peft", leaves, lnt.LNTuningConfig())


@pytest.mark.parametrize("path", [None, "a\0b", 3])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(AdapterError, match="is no path of a directory"):
        lnt.export_peft(path, {"ln.scale": np.ones(4, "f4")}, lnt.LNTuningConfig())
    with pytest.raises(AdapterError, match="is no path of a directory"):
        lnt.import_peft(path, TIED)


def test_a_directory_with_a_readme_alone_is_no_adapter(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    leaves = {"ln.scale": np.ones(4, "f4")}
    with pytest.raises(AdapterError, match=r"holds no PEFT adapter, or .*\('README.md'\)"):
        lnt.export_peft(tmp_path, leaves, lnt.LNTuningConfig(), overwrite=True)


def test_traced_and_integer_leaves_are_named(tmp_path):
    path = write(tmp_path / "peft", [NORM])
    with pytest.raises(AdapterError, match=r"traced in params: call this outside jax\.jit"):
        jax.jit(lambda params: lnt.import_peft(path, params))(TIED)


def test_shapes_are_compared_before_a_byte_is_read(tmp_path):
    """A header may claim gigabytes; the file here is sparse, and its end is never touched."""
    path = write(tmp_path / "peft", [NORM])
    header = (
        b'{"base_model.model.model.norm.ln_tuning_layers.weight":'
        b'{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (2**32, 2**34)
    )
    with (path / "adapter_model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 2**34)
    with pytest.raises(AdapterError, match=r"has shape \(4294967296,\), expected \(4,\)"):
        lnt.import_peft(path, TIED)


def test_a_shape_that_numpy_cannot_have_is_an_error_of_the_file(tmp_path):
    path = write(tmp_path / "peft", [NORM])
    axes = ",".join(["1"] * 101)
    header = (
        '{"base_model.model.model.norm.ln_tuning_layers.weight":'
        f'{{"dtype":"F32","shape":[{axes}],"data_offsets":[0,4]}}}}'
    ).encode()
    body = struct.pack("<Q", len(header)) + header + b"\0\0\0\0"
    (path / "adapter_model.safetensors").write_bytes(body)
    with pytest.raises(AdapterError, match="norm"):
        lnt.import_peft(path, TIED)


def test_long_names_of_a_file_do_not_fill_the_message(tmp_path):
    tensors = {"x" * 100_000: np.ones(1, "f4")}
    with pytest.raises(AdapterError) as caught:
        lnt.import_peft(files.write_adapter(tmp_path / "peft", tensors), TIED)
    assert len(str(caught.value)) < 2_000


def test_thousands_of_entries_are_matched_in_one_pass(tmp_path):
    """Not a time: the matches of expressions are counted, and entries without any need none."""
    params = {f"layers.{i}.norm.weight": np.ones(2, "f4") for i in range(1000)}
    entries = [f"other_{i}" for i in range(3000)]
    key = "base_model.model.layers.{}.norm.ln_tuning_layers.weight"
    tensors = {key.format(i): np.ones(2, "f4") for i in range(1000)}
    path = files.write_adapter(
        tmp_path / "peft", tensors, target_modules=["norm", *entries], modules_to_save=entries
    )
    assert len(lnt.load_peft(path, params).trainable) == 1000
    expressions = [f"(other|{i})" for i in range(3000)]
    path = files.write_adapter(tmp_path / "more", tensors, target_modules=expressions)
    with pytest.raises(ConfigError, match=r"3,000 that are no ends.*at most 64"):
        lnt.load_peft(path, params)
