"""PEFT adapters put into trees: values, layouts, dtypes, configs, and every refusal."""

import json
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import lntune_jax as lnt
from lntune_jax.errors import AdapterError, CopiedModuleWarning, UnmatchedPatternWarning
from tests.support import peft_files as files
from tests.support.devices import run_on_devices

HEAD = {"modules_to_save": ["classifier", "score"], "task_type": "SEQ_CLS"}


def assert_same_bits(found, expected):
    assert found.dtype == expected.dtype
    assert np.asarray(found).tobytes() == np.ascontiguousarray(expected).tobytes()


def test_norms_and_head_take_the_file_s_values_in_their_own_layout(tmp_path):
    tensors, params = files.make_tensors(head=True), files.make_params()
    found = lnt.import_peft(files.write_adapter(tmp_path, tensors, **HEAD), params)
    bert = found["bert"]
    for module in files.list_norms():
        node = found
        for segment in module.split("."):
            node = node[segment]
        key = f"{files.PREFIX}{module}.ln_tuning_layers."
        assert_same_bits(node["scale"], tensors[key + "weight"])
        assert_same_bits(node["bias"], tensors[key + "bias"])
    weight = tensors["base_model.model.classifier.weight"]
    assert_same_bits(found["classifier"]["kernel"], weight.T)
    word = bert["embeddings"]["word_embeddings"]["embedding"]
    assert word is params["bert"]["embeddings"]["word_embeddings"]["embedding"]


def test_the_file_s_config_comes_along_with_what_it_does_not_know(tmp_path):
    path = files.write_adapter(
        tmp_path, files.make_tensors(head=True), peft_version="0.21.2", auto_mapping=None, **HEAD
    )
    params = files.make_params()
    adapter = lnt.load_peft(path, params)
    written = json.loads((path / "adapter_config.json").read_text())
    known = {k: v for k, v in adapter.config.to_dict().items() if v is not None}
    known.pop("param_dtype")
    assert {k: v for k, v in written.items() if v is not None} == known
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "score", which PEFT adds for every classifier, is no fault
        trainable, _ = lnt.partition_params(params, adapter.config)
    assert list(adapter.trainable) == list(trainable)


def test_an_unmatched_module_that_peft_did_not_add_still_gives_a_warning():
    config = lnt.LNTuningConfig(modules_to_save=["classifier", "scores"], task_type="SEQ_CLS")
    with pytest.warns(UnmatchedPatternWarning, match="'scores' matches no module"):
        lnt.partition_params(files.make_params(), config)
    config = config.replace(modules_to_save=["bert", "score"])
    with pytest.warns(UnmatchedPatternWarning, match="'score' matches no module"):
        lnt.partition_params(files.make_params(), config)


def test_flat_trees_in_pytorch_s_layout_are_not_transposed(tmp_path):
    tensors = files.make_tensors(head=True)
    flat = {}
    for key, value in tensors.items():
        name = key.removeprefix(files.PREFIX).replace(".ln_tuning_layers", "")
        flat[name] = np.zeros_like(value)
    found = lnt.import_peft(files.write_adapter(tmp_path, tensors, **HEAD), flat)
    assert_same_bits(found["classifier.weight"], tensors["base_model.model.classifier.weight"])


@pytest.mark.parametrize("param_dtype", ["float32", None])
def test_a_bfloat16_file_gives_float32_masters_and_a_bfloat16_tree(tmp_path, param_dtype):
    tensors = files.make_tensors(dtype=ml_dtypes.bfloat16)
    config = {} if param_dtype else {"param_dtype": None}
    path = files.write_adapter(tmp_path, tensors, **config)
    params = files.make_params(ml_dtypes.bfloat16)
    leaf = lnt.load_peft(path, params).trainable["bert.embeddings.LayerNorm.scale"]
    key = "base_model.model.bert.embeddings.LayerNorm.ln_tuning_layers.weight"
    assert leaf.dtype == (np.float32 if param_dtype else ml_dtypes.bfloat16)
    np.testing.assert_array_equal(leaf.astype(np.float32), tensors[key].astype(np.float32))
    found = lnt.import_peft(path, params)["bert"]["embeddings"]["LayerNorm"]["scale"]
    assert_same_bits(found, tensors[key])


def test_a_float32_file_is_cast_to_the_base_or_kept(tmp_path):
    path = files.write_adapter(tmp_path, files.make_tensors())
    params = files.make_params(ml_dtypes.bfloat16)
    for cast, dtype in ((True, ml_dtypes.bfloat16), (False, np.float32)):
        found = lnt.import_peft(path, params, cast=cast)["bert"]["embeddings"]["LayerNorm"]
        assert found["scale"].dtype == dtype


def test_abstract_params_and_nnx_states_are_filled_in(tmp_path):
    path = files.write_adapter(tmp_path, files.make_tensors())
    params = files.make_params()
    abstract = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, params))
    found = lnt.import_peft(path, abstract)
    assert isinstance(found["bert"]["embeddings"]["LayerNorm"]["scale"], jax.Array)
    assert isinstance(found["classifier"]["kernel"], jax.ShapeDtypeStruct)
    state = nnx.State(jax.tree.map(lambda x: nnx.Param(jnp.asarray(x)), params))
    scale = lnt.import_peft(path, state)["bert"]["embeddings"]["LayerNorm"]["scale"]
    expected = found["bert"]["embeddings"]["LayerNorm"]["scale"]
    assert_same_bits(scale.get_value(), np.asarray(expected))


def test_leaves_take_the_sharding_of_those_they_replace(tmp_path):
    path = files.write_adapter(tmp_path, files.make_tensors())
    run_on_devices(
        f"""
import jax, lntune_jax as lnt
from tests.support import peft_files as files
mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
params = files.make_params()
norm = params["bert"]["embeddings"]["LayerNorm"]
norm["scale"] = jax.device_put(norm["scale"], sharding)
found = lnt.import_peft({str(path)!r}, params)["bert"]["embeddings"]["LayerNorm"]["scale"]
assert found.sharding == sharding, found.sharding
print("done")
""",
        8,
    )


def test_copies_of_modules_that_are_no_norms_become_saved_modules(tmp_path):
    """PEFT copies whatever a target matches; a container's keys then hold the adapter's name."""
    tensors, params = files.make_tensors(), files.make_params()
    rng = np.random.default_rng(5)
    classifier = files.PREFIX + "classifier.ln_tuning_layers."
    tensors[classifier + "weight"] = rng.standard_normal((3, 8)).astype(np.float32)
    tensors[classifier + "bias"] = rng.standard_normal(3).astype(np.float32)
    # PEFT saves the base's own embedding beside the copy of one.
    embedding = files.PREFIX + "bert.embeddings.word_embeddings."
    own = params["bert"]["embeddings"]["word_embeddings"]["embedding"]
    tensors[embedding + "base_layer.weight"] = own
    tensors[embedding + "ln_tuning_layers.weight"] = own + 1
    path = files.write_adapter(
        tmp_path, tensors, target_modules=["LayerNorm", "classifier", "word_embeddings"]
    )
    with pytest.warns(CopiedModuleWarning, match="'classifier'.*imported whole"):
        adapter = lnt.load_peft(path, params)
    assert_same_bits(adapter.trainable["classifier.kernel"], tensors[classifier + "weight"].T)
    assert_same_bits(adapter.trainable["bert.embeddings.word_embeddings.embedding"], own + 1)
    assert "classifier" in adapter.config.modules_to_save
    assert list(lnt.partition_params(params, adapter.config).trainable) == list(adapter.trainable)


def test_a_copied_container_holds_the_adapter_s_name_in_its_keys(tmp_path):
    tensors, params = {}, files.make_params()
    module = "bert.encoder.layer.0.attention"
    own = params["bert"]["encoder"]["layer"]["0"]["attention"]["output"]
    key = f"{files.PREFIX}{module}.ln_tuning_layers.default.output."
    tensors[key + "dense.weight"] = own["dense"]["kernel"].T.copy()
    tensors[key + "LayerNorm.weight"] = own["LayerNorm"]["scale"] * 2
    tensors[key + "LayerNorm.bias"] = own["LayerNorm"]["bias"] * 2
    path = files.write_adapter(tmp_path, tensors, target_modules=[module])
    with pytest.warns(CopiedModuleWarning, match="layer.0.attention"):
        adapter = lnt.load_peft(path, params)
    assert set(adapter.trainable) == {
        f"{module}.output.dense.kernel",
        f"{module}.output.LayerNorm.scale",
        f"{module}.output.LayerNorm.bias",
    }
    assert list(lnt.partition_params(params, adapter.config).trainable) == list(adapter.trainable)


def test_an_adapter_of_copies_alone_trains_no_norm(tmp_path):
    key = files.PREFIX + "classifier.ln_tuning_layers."
    tensors = {key + "weight": np.ones((3, 8), "f4"), key + "bias": np.ones(3, "f4")}
    path = files.write_adapter(tmp_path, tensors, target_modules=["classifier"])
    params = files.make_params()
    with pytest.warns(CopiedModuleWarning):
        adapter = lnt.load_peft(path, params)
    assert list(adapter.trainable) == ["classifier.bias", "classifier.kernel"]
    assert list(lnt.partition_params(params, adapter.config).trainable) == list(adapter.trainable)


def refuse(path, *fragments, params=None, **arguments):
    with pytest.raises(AdapterError) as caught:
        lnt.import_peft(path, files.make_params() if params is None else params, **arguments)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_a_key_that_belongs_to_nothing_is_listed(tmp_path):
    tensors = files.make_tensors() | {files.PREFIX + "bert.pooler.dense.bias": np.ones(8, "f4")}
    refuse(
        files.write_adapter(tmp_path, tensors),
        "1 of 11 keys belong to nothing",
        "bert.pooler.dense.bias",
    )


def test_a_key_of_another_form_belongs_to_nothing(tmp_path):
    tensors = files.make_tensors() | {"bert.embeddings.LayerNorm.weight": np.ones(8, "f4")}
    refuse(files.write_adapter(tmp_path, tensors), "belong to nothing", "'bert.embeddings")


def test_a_base_s_own_value_without_a_copy_belongs_to_nothing(tmp_path):
    key = files.PREFIX + "classifier.base_layer.bias"
    tensors = files.make_tensors() | {key: np.ones(3, "f4")}
    refuse(files.write_adapter(tmp_path, tensors), "belong to nothing", "classifier.base_layer")


def test_an_adapter_of_another_architecture_names_the_norms_that_are_here(tmp_path):
    tensors = {
        f"{files.PREFIX}model.layers.{i}.input_layernorm.ln_tuning_layers.weight": np.ones(8, "f4")
        for i in range(9)
    }
    path = files.write_adapter(tmp_path, tensors, target_modules=["input_layernorm"])
    here = "'bert.embeddings.LayerNorm.bias'"
    refuse(path, "trained on another model", "and 8 more", here, "name_map")


def test_missing_keys_are_listed(tmp_path):
    tensors = files.make_tensors()
    del tensors[f"{files.PREFIX}bert.encoder.layer.1.output.LayerNorm.ln_tuning_layers.bias"]
    refuse(
        files.write_adapter(tmp_path, tensors),
        "missing keys, which its config selects: 'bert.encoder.layer.1.output.LayerNorm.bias'",
    )
    path = files.write_adapter(tmp_path / "head", files.make_tensors(), **HEAD)
    refuse(path, "missing keys", "'classifier.weight'")


def test_keys_that_the_config_does_not_select_are_listed(tmp_path):
    path = files.write_adapter(tmp_path, files.make_tensors(head=True))
    refuse(path, "unexpected keys", "'classifier.bias'")
    path = files.write_adapter(tmp_path / "a", target_modules=["output.LayerNorm"])
    refuse(path, "unexpected keys", "'bert.embeddings.LayerNorm.bias'")


def test_a_wrong_shape_names_the_key_and_both_shapes(tmp_path):
    tensors = files.make_tensors(head=True)
    tensors[files.PREFIX + "classifier.weight"] = np.ones((8, 3), "f4")  # not in PyTorch's layout
    path = files.write_adapter(tmp_path, tensors, **HEAD)
    refuse(path, "classifier.weight' has shape (8, 3), expected (3, 8)")


def test_values_that_are_not_finite_are_refused(tmp_path):
    tensors = files.make_tensors()
    next(iter(tensors.values()))[2] = np.nan
    refuse(files.write_adapter(tmp_path, tensors), "holds values that are not finite")


def test_integers_are_refused(tmp_path):
    tensors = {key: value.astype(np.int8) for key, value in files.make_tensors().items()}
    refuse(files.write_adapter(tmp_path, tensors), "is I8", "expected F64, F32, F16, BF16")


def test_two_keys_of_one_parameter_are_refused(tmp_path):
    tensors = files.make_tensors()
    tensors[files.PREFIX + "bert.embeddings.LayerNorm.weight"] = np.ones(8, "f4")
    refuse(files.write_adapter(tmp_path, tensors), "which another key holds too")


def test_a_pickle_is_refused(tmp_path):
    path = files.write_adapter(tmp_path)
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    refuse(path, "a pickle", "safe_serialization=True")


def test_absent_files_and_adapters_of_save_adapter_are_told_apart(tmp_path):
    refuse(tmp_path / "nowhere", "there is no adapter directory")
    refuse(tmp_path, "holds no adapter: expected adapter_model.safetensors")
    params = files.make_params()
    config = lnt.LNTuningConfig()
    trainable, _ = lnt.partition_params(params, config)
    path = lnt.save_adapter(tmp_path / "own", trainable, config, base=params)
    refuse(path, "an adapter of save_adapter", "restore_adapter")
    path = files.write_adapter(tmp_path / "peft")
    (path / "adapter_config.json").unlink()
    refuse(path, "adapter_config.json")


def test_an_adapter_of_another_kind_is_refused(tmp_path):
    path = files.write_adapter(tmp_path, peft_type="LORA")
    refuse(path, "no config of an LN tuning adapter", "'LORA'")
    key = files.PREFIX + "classifier.lora_A.weight"
    path = files.write_adapter(tmp_path / "keys", files.make_tensors() | {key: np.ones(3, "f4")})
    refuse(path, "LORA", "lora_A")


@pytest.mark.parametrize("length", [0, 5, 200, -20])
def test_a_truncated_file_is_refused(tmp_path, length):
    file = files.write_adapter(tmp_path) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    refuse(tmp_path, "is damaged or cut short", "adapter_model.safetensors")


def test_a_frozen_half_is_no_base(tmp_path):
    params = files.make_params()
    _, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
    refuse(files.write_adapter(tmp_path), "frozen half", params=frozen)


def test_a_refused_adapter_changes_nothing(tmp_path):
    params = files.make_params()
    before = jax.tree.map(np.copy, params)
    tensors = files.make_tensors() | {"x": np.ones(1, "f4")}
    refuse(files.write_adapter(tmp_path, tensors), params=params)
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_any_file_with_random_bytes_is_an_error_not_a_crash(tmp_path):
    path = files.write_adapter(tmp_path)
    file = path / "adapter_model.safetensors"
    good, rng = file.read_bytes(), np.random.default_rng(0)
    for offset in rng.integers(0, 900, 200):  # the header, where a flip changes what is read
        bad = bytearray(good)
        bad[offset] ^= 1 << int(rng.integers(8))
        file.write_bytes(bytes(bad))
        try:
            lnt.import_peft(path, files.make_params())
        except AdapterError:
            continue
        assert load_file(file).keys() == files.make_tensors().keys()


def test_tensors_of_a_plain_save_without_metadata_are_read(tmp_path):
    path = files.write_adapter(tmp_path)
    save_file(files.make_tensors(), path / "adapter_model.safetensors")
    assert len(lnt.load_peft(path, files.make_params()).trainable) == 10


def test_peft_s_rule_saves_what_ends_like_an_entry(tmp_path):
    """DistilBERT's `pre_classifier` ends with "classifier", so PEFT saves it too."""
    params = files.make_params()
    params["pre_classifier"] = {"kernel": np.ones((8, 8), "f4"), "bias": np.ones(8, "f4")}
    tensors = files.make_tensors(head=True)
    tensors[files.PREFIX + "pre_classifier.weight"] = np.arange(64, dtype="f4").reshape(8, 8)
    tensors[files.PREFIX + "pre_classifier.bias"] = np.zeros(8, "f4")
    path = files.write_adapter(tmp_path / "peft", tensors, **HEAD)
    adapter = lnt.load_peft(path, params)
    assert_same_bits(
        adapter.trainable["pre_classifier.kernel"],
        np.arange(64, dtype="f4").reshape(8, 8).T,
    )
    assert list(lnt.partition_params(params, adapter.config).trainable) == list(adapter.trainable)
    config = lnt.LNTuningConfig(modules_to_save=["classifier"], task_type="SEQ_CLS")
    trainable, frozen = lnt.partition_params(params, config)
    written = lnt.export_peft(tmp_path / "back", trainable, config, base=frozen)
    found = load_file(written / "adapter_model.safetensors")
    assert found.keys() == tensors.keys()
    restored = lnt.import_peft(written, params)
    jax.tree.map(np.testing.assert_array_equal, restored, params)


def test_a_path_that_is_the_end_of_another_one_is_still_exact(tmp_path):
    """A name map turns `norm` here into one of two modules there; `layers.0.norm` ends like it."""
    params = {"norm.w": np.ones(4, "f4"), "layers.0.norm.w": np.ones(4, "f4")}
    rules = [
        lnt.peft.NameRule(leaf="norm.w", parameter="model.norm.weight"),
        lnt.peft.NameRule(leaf="layers.0.norm.w", parameter="model.layers.0.ln.weight"),
    ]
    name_map = lnt.peft.NameMap(source="a test", model_types=("llama",), rules=tuple(rules))
    key = files.PREFIX + "model.norm.ln_tuning_layers.weight"
    tensors = {key: np.full(4, 2, "f4")}
    path = files.write_adapter(tmp_path, tensors, target_modules=["model.norm"])
    adapter = lnt.load_peft(path, params, name_map=name_map)
    assert list(adapter.trainable) == ["norm.w"]
    assert list(lnt.partition_params(params, adapter.config).trainable) == ["norm.w"]
