"""Configs with no targets on purpose: an adapter of saved modules alone, wherever a config is made.

Such a config has `target_modules=()`; None in its place would train every norm.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import lntune_jax as lnt

PARAMS = {
    "ln": {"weight": jnp.ones(4), "bias": jnp.zeros(4)},
    "head": {"weight": jnp.ones((2, 4)), "bias": jnp.zeros(2)},
}
HEAD = ["head.bias", "head.weight"]


def head_of(params):
    config = lnt.LNTuningConfig(target_modules=[], modules_to_save=["head"])
    return lnt.partition_params(params, config).trainable, config


def test_saved_and_restored(tmp_path):
    trainable, config = head_of(PARAMS)
    assert sorted(trainable) == HEAD
    moved = {path: value + 1 for path, value in trainable.items()}
    lnt.save_adapter(tmp_path / "adapter", moved, config, base=PARAMS)
    assert lnt.load_adapter(tmp_path / "adapter").config.target_modules == ()
    restored = lnt.restore_adapter(tmp_path / "adapter", PARAMS)
    np.testing.assert_array_equal(restored["head"]["weight"], 2)
    np.testing.assert_array_equal(restored["ln"]["weight"], 1)


def test_a_peft_file_without_norms(tmp_path):
    """As PEFT writes where a target matched a module that is no norm."""
    keys = {"head.ln_tuning_layers.weight": np.full((2, 4), 3, np.float32)}
    keys["head.ln_tuning_layers.bias"] = np.ones(2, np.float32)
    folder = tmp_path / "peft"
    folder.mkdir()
    tensors = {f"base_model.model.{key}": value for key, value in keys.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LN_TUNING", "target_modules": ["head"]})
    )
    with pytest.warns(lnt.errors.CopiedModuleWarning) as caught:
        trainable, config = lnt.load_peft(folder, PARAMS)
    assert caught[0].filename == __file__
    assert sorted(trainable) == HEAD
    assert (config.target_modules, config.modules_to_save) == ((), ("head",))
    assert sorted(lnt.partition_params(PARAMS, config).trainable) == HEAD


def test_a_bank_of_heads(tmp_path):
    trainable, _ = head_of(PARAMS)
    bank = lnt.bank.make_bank(PARAMS, {"one": trainable})
    adapter = lnt.bank.get_adapter(bank, "one")
    assert adapter.config.target_modules == ()
    lnt.save_adapter(tmp_path / "adapter", adapter.trainable, adapter.config, base=PARAMS)


def test_a_model_card_says_so(tmp_path):
    trainable, config = head_of(PARAMS)
    lnt.save_adapter(tmp_path / "adapter", trainable, config, base=PARAMS)
    card = lnt.hub.make_card(tmp_path / "adapter", "me/tuned")
    assert "| targets | no norm |" in card


def test_nothing_at_all_is_an_error_with_advice_for_the_case():
    config = lnt.LNTuningConfig(target_modules=[])
    with pytest.raises(lnt.errors.SelectionError, match="leave target_modules out") as caught:
        lnt.select(PARAMS, config)
    assert "pass target_modules=[]" not in str(caught.value)
    config = config.replace(modules_to_save=["haed"])
    with (
        pytest.warns(lnt.errors.UnmatchedPatternWarning, match="haed"),
        pytest.raises(lnt.errors.SelectionError, match=r"names no module of it.*nearest 'head'"),
    ):
        lnt.select(PARAMS, config)


def test_no_word_about_what_may_be_a_norm():
    config = lnt.LNTuningConfig(target_modules=[], modules_to_save=["head"])
    norm = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
    assert sorted(lnt.select({**PARAMS, "layers_1": norm}, config).trainable) == HEAD
