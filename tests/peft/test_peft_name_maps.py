"""Trees of other libraries, real listings of their leaves, to PEFT and back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import lntune_jax as lnt
from tests.support.paths import REFERENCE

LISTINGS = {
    f"{file.stem}-{model['name_map']}-{index}": model
    for file in sorted((REFERENCE / "name_maps").glob("*.json"))
    for index, model in enumerate(json.loads(file.read_text())["models"])
}


@pytest.mark.parametrize("name", LISTINGS)
def test_every_norm_of_a_library_s_tree_goes_to_peft_and_comes_back(name, tmp_path):
    model = LISTINGS[name]
    params = {
        path: jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
        for path, shape in model["leaves"].items()
    }
    config, rng = lnt.LNTuningConfig(), np.random.default_rng(0)
    trainable = {
        leaf: rng.normal(1, 0.2, shape.shape).astype("f4")
        for leaf, shape in lnt.partition_params(params, config).trainable.items()
    }
    name_map = model["name_map"]
    path = lnt.export_peft(tmp_path / "peft", trainable, config, name_map=name_map)
    written = load_file(path / "adapter_model.safetensors")
    norms = {key for key in model["parameters"] if "norm" in key.lower() or "ln_" in key}
    assert {
        key.removeprefix("base_model.model.").replace(".ln_tuning_layers", "") for key in written
    } == norms
    adapter = lnt.load_peft(path, params, name_map=name_map)
    assert list(adapter.trainable) == list(trainable)
    assert list(lnt.partition_params(params, adapter.config).trainable) == list(trainable)
    holds_one_plus_w = name_map.startswith("maxtext_gemma")
    for leaf, value in trainable.items():
        found = adapter.trainable[leaf]
        # Half the spacing of float32 at 2, once for each direction: the shift rounds.
        np.testing.assert_allclose(found, value, rtol=0, atol=2.4e-7 if holds_one_plus_w else 0)
    if holds_one_plus_w:
        mean = np.mean([value.mean() for value in written.values()])
        assert abs(mean) < 0.1  # transformers holds w: the 1 is taken off


def test_a_gemma_tree_with_transformers_own_names_is_never_shifted(tmp_path):
    params = {"model.norm.weight": np.float32([0.1, 0.2]), "model.norm2.weight": np.ones(2, "f4")}
    config = lnt.LNTuningConfig(model_type="gemma")
    trainable, _ = lnt.partition_params(params, config)
    path = lnt.export_peft(tmp_path / "peft", trainable, config)
    (written,) = load_file(path / "adapter_model.safetensors").values()
    assert written.tobytes() == params["model.norm.weight"].tobytes()
    assert lnt.import_peft(path, params)["model.norm.weight"].tobytes() == written.tobytes()
