"""The config: checked, immutable, hashable, and at home in PEFT's file."""

import dataclasses
import json

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lntune_jax as lnt
from lntune_jax.errors import ConfigError

PEFT_FILE = {
    "auto_mapping": None,
    "base_model_name_or_path": "meta-llama/Llama-3.2-3B",
    "exclude_modules": None,
    "inference_mode": True,
    "modules_to_save": None,
    "peft_type": "LN_TUNING",
    "peft_version": "0.21.2",
    "revision": None,
    "target_modules": ["norm", "input_layernorm"],
    "task_type": "CAUSAL_LM",
}


def test_is_immutable_hashable_and_static_under_jit():
    config = lnt.LNTuningConfig(target_modules=["norm"], modules_to_save="head")
    assert config == lnt.LNTuningConfig(target_modules=("norm",), modules_to_save=["head"])
    assert len({config, config.replace()}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.target_modules = None
    with pytest.raises(TypeError):
        lnt.LNTuningConfig(["norm"])
    f = jax.jit(lambda x, c: x if c.target_modules else -x, static_argnums=1)
    assert f(1.0, config) == 1.0


def test_a_set_becomes_a_sorted_tuple():
    assert lnt.LNTuningConfig(target_modules={"b", "a"}).target_modules == ("a", "b")


def test_reads_and_writes_back_a_file_of_peft(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(PEFT_FILE))
    config = lnt.LNTuningConfig.from_pretrained(tmp_path)
    assert config.inference_mode
    assert config.target_modules == ("norm", "input_layernorm")
    config.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert again == PEFT_FILE  # nothing lost, and nothing that PEFT would not know


def test_our_own_fields_survive_the_file(tmp_path):
    config = lnt.LNTuningConfig(model_type="llama", param_dtype=None, target_modules=".*norm")
    config.save_pretrained(tmp_path)
    assert lnt.LNTuningConfig.from_pretrained(tmp_path) == config


@given(st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | st.text(max_size=5)))
def test_unknown_fields_are_kept(extra):
    extra = {
        key: value for key, value in extra.items() if key not in lnt.LNTuningConfig().to_dict()
    }
    config = lnt.LNTuningConfig.from_dict({"target_modules": ["norm"]} | extra)
    assert extra.items() <= config.to_dict().items()
    assert lnt.LNTuningConfig.from_dict(config.to_dict()) == config
    hash(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": 3}, "target_modules must be a string or a sequence"),
        ({"target_modules": ["a", 3]}, "target_modules must be a string or a sequence"),
        ({"exclude_modules": ""}, "exclude_modules must not be an empty string"),
        ({"exclude_modules": [""]}, "exclude_modules must be"),
        ({"task_type": 1}, "task_type must be a string"),
        ({"inference_mode": "yes"}, "inference_mode must be True or False"),
        ({"peft_type": "LORA"}, "'LORA'.*another kind of adapter"),
        ({"param_dtype": "bfloat16"}, "param_dtype must be 'float32', 'float64' or None"),
        ({"target_modules": "a**"}, "'a\\*\\*' is not a valid regular expression"),
    ],
)
def test_a_wrong_field_is_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        lnt.LNTuningConfig(**fields)


@pytest.mark.parametrize(
    ("values", "message"), [(None, "must be a dict"), ({"new": {1}}, "no JSON value")]
)
def test_from_dict_refuses_what_is_no_json(values, message):
    with pytest.raises(ConfigError, match=message):
        lnt.LNTuningConfig.from_dict(values)


def test_replace_names_an_unknown_field():
    with pytest.raises(ConfigError, match="no field targets"):
        lnt.LNTuningConfig().replace(targets=["norm"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read .*adapter_config.json"),
        ("{", "not valid JSON"),
        ("[]", "must hold a JSON object"),
        ('{"target_modules": "a", "target_modules": "b"}', "appears twice"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_broken_file_is_an_error(tmp_path, text, message):
    if text is not None:
        (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        lnt.LNTuningConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["a" * 300, "a file/below"])
def test_a_directory_that_cannot_be_is_an_error(tmp_path, name):
    (tmp_path / "a file").touch()
    with pytest.raises(ConfigError, match=r"cannot write .*adapter_config\.json: "):
        lnt.LNTuningConfig(target_modules=["norm"]).save_pretrained(tmp_path / name)
    with pytest.raises(ConfigError, match=r"cannot read .*adapter_config\.json: "):
        lnt.LNTuningConfig.from_pretrained(tmp_path / name)
