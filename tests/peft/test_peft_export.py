"""Adapters written for PEFT: keys, layouts, configs that PEFT reads as we do, and every refusal."""

import json
import re
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

import lntune_jax as lnt
from lntune_jax.errors import (
    AdapterError,
    ConfigError,
    SelectionError,
    TreeError,
    UnmatchedPatternWarning,
)
from lntune_jax.peft.config import make_peft_config
from tests.support import peft_files as files

NORMS = lnt.LNTuningConfig()
BERT = lnt.LNTuningConfig(model_type="bert", modules_to_save=["classifier"], task_type="SEQ_CLS")


def tune(config, params=None, seed=3):
    params = files.make_params() if params is None else params
    rng = np.random.default_rng(seed)
    trainable, _ = lnt.partition_params(params, config)
    return {name: rng.standard_normal(leaf.shape).astype("f4") for name, leaf in trainable.items()}


def export(path, config, trainable=None, **arguments):
    trainable = tune(config) if trainable is None else trainable
    written = lnt.export_peft(path / "peft", trainable, config, **arguments)
    return load_file(written / "adapter_model.safetensors"), read_config(written)


def read_config(directory):
    return json.loads((directory / "adapter_config.json").read_text())


def test_the_keys_are_those_that_peft_writes(tmp_path):
    tensors, config = export(tmp_path, BERT)
    assert tensors.keys() == files.make_tensors(head=True).keys()
    assert config == {
        "base_model_name_or_path": None,
        "exclude_modules": None,
        "inference_mode": True,
        "modules_to_save": ["classifier"],
        "peft_type": "LN_TUNING",
        "revision": None,
        "target_modules": ["LayerNorm"],
        "task_type": "SEQ_CLS",
    }
    with safe_open(tmp_path / "peft/adapter_model.safetensors", framework="numpy") as handle:
        assert handle.metadata()["format"] == "pt"  # transformers asks for it


def test_kernels_are_transposed_and_norms_are_the_same_bits(tmp_path):
    trainable = tune(BERT)
    tensors, _ = export(tmp_path, BERT, trainable)
    weight = tensors["base_model.model.classifier.weight"]
    np.testing.assert_array_equal(weight, trainable["classifier.kernel"].T)
    key = "base_model.model.bert.embeddings.LayerNorm.ln_tuning_layers.weight"
    assert tensors[key].tobytes() == trainable["bert.embeddings.LayerNorm.scale"].tobytes()


@pytest.mark.parametrize("dtype", ["float32", ml_dtypes.bfloat16])
@pytest.mark.parametrize("config", [NORMS, BERT, BERT.replace(target_modules=".*output.*")])
def test_there_and_back_gives_the_same_bits_and_the_same_files(tmp_path, config, dtype):
    params = files.make_params(dtype)
    trainable = tune(config, params)
    first = lnt.export_peft(tmp_path / "first", trainable, config)
    adapter = lnt.load_peft(first, params)
    assert list(adapter.trainable) == list(trainable)
    for name, leaf in trainable.items():
        assert adapter.trainable[name].tobytes() == leaf.tobytes()
    second = lnt.export_peft(tmp_path / "second", adapter.trainable, adapter.config)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (first / file).read_bytes() == (second / file).read_bytes()


def test_bfloat16_leaves_stay_bfloat16(tmp_path):
    config = NORMS.replace(param_dtype=None)
    trainable, _ = lnt.partition_params(files.make_params(ml_dtypes.bfloat16), config)
    tensors, _ = export(tmp_path, config, trainable)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_unknown_keys_of_a_file_are_written_back(tmp_path):
    config = lnt.LNTuningConfig.from_dict(BERT.to_dict() | {"peft_version": "0.21.2", "new": [1]})
    _, written = export(tmp_path, config)
    assert written["peft_version"] == "0.21.2"
    assert written["new"] == [1]


# What PEFT does with a config (src/peft/tuners/tuners_utils.py, check_target_module_exists).
def peft_copies(config, module):
    def is_named(patterns):
        if isinstance(patterns, str):
            return re.fullmatch(patterns, module) is not None
        return any(module == p or module.endswith(f".{p}") for p in patterns or ())

    saved = config["modules_to_save"] or ()
    if is_named(config["exclude_modules"]):
        return False
    if any(re.match(rf"(^|.*\.){entry}($|\..*)", module) for entry in saved):
        return False
    return is_named(config["target_modules"])


TARGETS = [
    None,
    ["LayerNorm"],
    ["output.LayerNorm"],
    ["attention"],
    ["bert.encoder"],
    ["layer.0", "embeddings.LayerNorm"],
    [".*1.*"],
    ".*",
    ".*encoder.*",
    r"bert\.embeddings\.LayerNorm",
]


@given(
    targets=st.sampled_from(TARGETS),
    exclude=st.sampled_from([None, ["embeddings.LayerNorm"], r".*\.0\..*", [".*1.*norm"]]),
    saved=st.sampled_from([None, ["classifier"], ["bert.embeddings"], ["clas.*"]]),
    model_type=st.sampled_from([None, "bert", "roberta"]),
)
def test_peft_copies_the_norms_that_trained_and_nothing_else(
    tmp_path_factory, targets, exclude, saved, model_type
):
    config = lnt.LNTuningConfig(
        target_modules=targets,
        exclude_modules=exclude,
        modules_to_save=saved,
        model_type=model_type,
    )
    params = files.make_params()
    # What a pattern names besides norms: PEFT copies a module of any kind.
    params["bert"]["pooler"] = {"output": {"LayerNorm": {"kernel": np.ones((8, 8), "f4")}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnmatchedPatternWarning)
        try:
            trainable = tune(config, params)
        except SelectionError:
            return
    path = tmp_path_factory.mktemp("adapter") / "peft"
    own = "classifier" if saved in (["classifier"], ["clas.*"]) else "bert.embeddings"
    if saved and all(name.startswith(own) for name in trainable):
        with pytest.raises(AdapterError, match="saved modules alone"):
            lnt.export_peft(path, trainable, config, base=params)
        return
    written = read_config(lnt.export_peft(path, trainable, config, base=params))
    kept = [
        module.removesuffix(".scale")
        for module in trainable
        if module.endswith(".scale") and not (saved == ["bert.embeddings"] and "embedd" in module)
    ]
    paths = [tuple(str(k.key) for k in keys) for keys, _ in jax.tree.leaves_with_path(params)]
    modules = {".".join(path[:end]) for path in paths for end in range(1, len(path))}
    assert {module for module in modules if peft_copies(written, module)} == set(kept)
    adapter = lnt.load_peft(path, params)
    assert {name: leaf.tobytes() for name, leaf in adapter.trainable.items()} == {
        name: leaf.tobytes() for name, leaf in trainable.items()
    }


def test_an_entry_that_matches_a_container_is_written_out():
    made = make_peft_config(
        lnt.LNTuningConfig(target_modules=["attention"]), ["a.attention.ln.weight"], [],
        known=["a.attention.ln.weight"], is_renamed=False,
    )  # fmt: skip
    assert made.target_modules == ("a.attention.ln",)


def test_scales_alone_need_the_base_for_the_biases_beside_them(tmp_path):
    config = lnt.LNTuningConfig(target_modules=r".*\.scale")
    params = files.make_params()
    trainable = tune(config, params)
    with pytest.raises(AdapterError, match="whole modules: pass base=params"):
        export(tmp_path, config, trainable)
    for base in (params, lnt.partition_params(params, config).frozen):
        tensors, _ = export(tmp_path, config, trainable, base=base, overwrite=True)
        key = "base_model.model.bert.embeddings.LayerNorm.ln_tuning_layers."
        assert tensors.keys() == files.make_tensors().keys()
        expected = params["bert"]["embeddings"]["LayerNorm"]["bias"]
        np.testing.assert_array_equal(tensors[key + "bias"], expected)
    found = lnt.import_peft(tmp_path / "peft", params)
    expected = lnt.merge_params(trainable, lnt.partition_params(params, config).frozen)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_task_s_head_that_did_not_train_is_taken_from_the_base(tmp_path):
    config = lnt.LNTuningConfig(task_type="SEQ_CLS")
    with pytest.raises(AdapterError, match=r"classifier or score.*base=params.*task_type=None"):
        export(tmp_path, config)
    params = files.make_params()
    tensors, written = export(tmp_path, config, base=params)
    expected = params["classifier"]["kernel"].T
    np.testing.assert_array_equal(tensors["base_model.model.classifier.weight"], expected)
    assert written["modules_to_save"] == ["classifier"]


@pytest.mark.parametrize("uneven", [True, False])
def test_a_norm_that_the_first_layer_lacks_is_named_by_its_path(tmp_path, uneven):
    """ModernBERT's first layer has an `nn.Identity` there, of which PEFT cannot make a copy."""
    norm = {"scale": np.ones(4)}
    layers = [{"attn_norm": norm, "mlp_norm": norm, "fc": {"kernel": np.ones((4, 4))}}] * 2
    if uneven:
        layers[0] = {name: part for name, part in layers[0].items() if name != "attn_norm"}
    config = lnt.LNTuningConfig(target_modules=["attn_norm", "mlp_norm"])
    trainable, _ = lnt.partition_params({"layers": layers}, config)
    lnt.export_peft(tmp_path / "peft", trainable, config, base={"layers": layers})
    fields = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    paths = ["layers.0.mlp_norm", "layers.1.attn_norm", "layers.1.mlp_norm"]
    assert sorted(fields["target_modules"]) == (paths if uneven else ["attn_norm", "mlp_norm"])


def test_distilbert_s_second_head_layer_is_asked_for(tmp_path):
    config = lnt.LNTuningConfig(task_type="SEQ_CLS", modules_to_save=["classifier"])
    leaves = {"distilbert.ln.scale": np.ones(4), "classifier.bias": np.ones(2)}
    with pytest.raises(AdapterError, match=r"also saves 'pre_classifier'.*base=params"):
        export(tmp_path, config, leaves)
    both = config.replace(modules_to_save=["classifier", "pre_classifier"])
    tensors, _ = export(tmp_path, both, leaves | {"pre_classifier.bias": np.ones(4)})
    assert "base_model.model.pre_classifier.bias" in tensors


def test_a_leaf_that_is_saved_alone_needs_the_rest_of_its_module(tmp_path):
    config = lnt.LNTuningConfig(modules_to_save=["classifier.bias"])
    with pytest.raises(AdapterError, match=r"'classifier.bias'.*base=params"):
        export(tmp_path, config)
    tensors, written = export(tmp_path, config, base=files.make_params())
    assert "base_model.model.classifier.weight" in tensors
    assert written["modules_to_save"] == ["classifier"]


def test_stacked_layers_are_split_and_joined_by_a_name_map(tmp_path):
    params = {"decoder": {"layers": {"ln": {"scale": np.arange(12.0, dtype="f4").reshape(4, 3)}}}}
    rule = lnt.peft.NameRule(
        leaf="decoder.layers.ln.scale",
        parameter="model.layers.{layer}.input_layernorm.weight",
        layer_axis=1,
    )
    name_map = lnt.peft.NameMap(source="a test", model_types=("llama",), rules=(rule,))
    trainable, _ = lnt.partition_params(params, NORMS)
    with pytest.raises(AdapterError, match=r"a stack of layers.*pass a name_map"):
        export(tmp_path, NORMS, trainable)
    tensors, config = export(tmp_path, NORMS, trainable, name_map=name_map)
    keys = [f"base_model.model.model.layers.{i}.input_layernorm" for i in range(3)]
    for i, key in enumerate(keys):
        np.testing.assert_array_equal(
            tensors[key + ".ln_tuning_layers.weight"],
            params["decoder"]["layers"]["ln"]["scale"][:, i],
        )
    assert config["target_modules"] == [f"model.layers.{i}.input_layernorm" for i in range(3)]
    adapter = lnt.load_peft(tmp_path / "peft", params, name_map=name_map)
    np.testing.assert_array_equal(
        adapter.trainable["decoder.layers.ln.scale"], params["decoder"]["layers"]["ln"]["scale"]
    )
    assert list(lnt.partition_params(params, adapter.config).trainable) == list(adapter.trainable)


def test_a_stack_of_which_the_file_holds_some_layers_only_is_refused(tmp_path):
    rule = lnt.peft.NameRule(leaf="layers.ln.scale", parameter="h.{layer}.ln.weight", layer_axis=0)
    name_map = lnt.peft.NameMap(source="a test", model_types=("gpt2",), rules=(rule,))
    params = {"layers": {"ln": {"scale": np.ones((3, 4), "f4")}}}
    lnt.export_peft(tmp_path / "peft", {"h.1.ln.scale": np.ones(4)}, NORMS)
    with pytest.raises(AdapterError, match=r"stacked in one leaf.*'h\.0\.ln\.weight'"):
        lnt.import_peft(tmp_path / "peft", params, name_map=name_map)


def test_a_leaf_without_a_rule_has_no_name(tmp_path):
    with pytest.raises(AdapterError, match=r"no rule for 'ln\.scale'"):
        export(tmp_path, NORMS, {"ln.scale": np.ones(4)}, name_map="tunix_llama3")


@pytest.mark.parametrize("module", ["h.0.attn.c_attn", "h.0.mlp.c_fc"])
def test_a_kernel_of_unknown_layout_is_refused(tmp_path, module):
    config = lnt.LNTuningConfig(target_modules=["ln"], modules_to_save=[module])
    trainable = {"ln.scale": np.ones(4), f"{module}.kernel": np.ones((4, 4))}
    with pytest.raises(AdapterError, match=rf"layout of '{module}.kernel'.*cannot be known"):
        export(tmp_path, config, trainable)


@pytest.mark.parametrize(
    ("shape", "axes"), [((4, 3), (1, 0)), ((2, 5, 3, 4), (3, 2, 0, 1))]
)  # fmt: skip
def test_kernels_of_dense_layers_and_of_convolutions(tmp_path, shape, axes):
    config = lnt.LNTuningConfig(target_modules=["ln"], modules_to_save=["proj"])
    kernel = np.arange(np.prod(shape), dtype="f4").reshape(shape)
    tensors, _ = export(tmp_path, config, {"ln.scale": np.ones(4), "proj.kernel": kernel})
    np.testing.assert_array_equal(tensors["base_model.model.proj.weight"], kernel.transpose(axes))


def test_a_kernel_of_three_axes_may_be_of_several_kinds(tmp_path):
    config = lnt.LNTuningConfig(target_modules=["ln"], modules_to_save=["proj"])
    with pytest.raises(AdapterError, match=r"layout of 'proj\.kernel'"):
        export(tmp_path, config, {"ln.scale": np.ones(4), "proj.kernel": np.ones((2, 3, 4))})


def test_leaves_of_another_config_are_refused(tmp_path):
    with pytest.raises(AdapterError, match=r"'classifier\.bias'.*does not select"):
        export(tmp_path, NORMS.replace(target_modules=["LayerNorm"]), tune(BERT))
    with pytest.raises(AdapterError, match=r"missing from trainable: 'classifier\.bias'"):
        export(tmp_path, BERT, tune(NORMS), base=files.make_params())


def test_two_leaves_of_one_parameter_are_refused(tmp_path):
    with pytest.raises(TreeError, match=r"are both 'ln\.weight'"):
        export(tmp_path, NORMS, {"ln.scale": np.ones(2), "ln.weight": np.ones(2)})


def test_values_that_are_not_finite_or_not_there_are_refused(tmp_path):
    with pytest.raises(AdapterError, match="not finite"):
        export(tmp_path, NORMS, {"ln.scale": np.array([1.0, np.inf])})
    with pytest.raises(AdapterError, match="has no values"):
        export(tmp_path, NORMS, {"ln.scale": jax.ShapeDtypeStruct((2,), jnp.float32)})
    with pytest.raises(AdapterError, match="must be a dict of leaf paths"):
        export(tmp_path, NORMS, [np.ones(2)])
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_replaced_by_the_flag_only_and_only_an_adapter(tmp_path):
    path = tmp_path / "peft"
    export(tmp_path, NORMS)
    before = (path / "adapter_model.safetensors").read_bytes()
    with pytest.raises(AdapterError, match="exists: pass another path, or overwrite=True"):
        export(tmp_path, NORMS)
    assert (path / "adapter_model.safetensors").read_bytes() == before
    export(tmp_path, NORMS, tune(NORMS, seed=9), overwrite=True)
    assert (path / "adapter_model.safetensors").read_bytes() != before
    (path / "README.md").write_text("a person may have written it")
    (path / "thesis.tex").touch()
    with pytest.raises(AdapterError, match=r"README\.md.*thesis\.tex.*replaces PEFT adapters only"):
        export(tmp_path, NORMS, overwrite=True)
    assert (path / "README.md").read_text() == "a person may have written it"
    with pytest.raises(AdapterError, match="is a file"):
        lnt.export_peft(path / "thesis.tex", tune(NORMS), NORMS, overwrite=True)


def test_a_name_map_that_is_not_known_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"name_map='lama' is not known.*tunix_llama3"):
        export(tmp_path, NORMS, name_map="lama")
    with pytest.raises(ConfigError, match="config must be an LNTuningConfig"):
        lnt.export_peft(tmp_path / "x", tune(NORMS), {"target_modules": ["norm"]})


@pytest.mark.parametrize("task_type", ["SEQ_CLS", None])
def test_heads_of_several_layers_are_written_as_one_module(tmp_path, task_type):
    params = files.make_params()
    inner = {"kernel": np.ones((8, 8), "f4"), "bias": np.ones(8, "f4")}
    params["classifier"] = {"dense": inner, "out_proj": dict(inner), "extra": np.ones(2, "f4")}
    config = lnt.LNTuningConfig(
        modules_to_save=["class.*"], task_type=task_type, exclude_modules=["output.LayerNorm"]
    )
    trainable, _ = lnt.partition_params(params, config)
    with pytest.raises(AdapterError, match="base=params"):
        export(tmp_path, config, trainable)
    tensors, written = export(tmp_path, config, trainable, base=params)
    assert written["modules_to_save"] == ["classifier"]
    assert "base_model.model.classifier.out_proj.weight" in tensors
    restored = lnt.import_peft(tmp_path / "peft", params)
    jax.tree.map(np.testing.assert_array_equal, restored, params)
