"""JSON from strangers: bounded work, one meaning, short messages."""

import json
import os
import threading
from pathlib import Path

import pytest

import lntune_jax as lnt
from lntune_jax.errors import AdapterError, ConfigError, ModelError
from lntune_jax.models import from_config
from lntune_jax.models.loading.safetensors import read_weights
from lntune_jax.storage.sealed import MOST_LEVELS, parse_json, read_json
from tests.support.directories import CONFIG, PARAMS, leaves


def write_config(place: Path, text: str | bytes) -> Path:
    place.mkdir(exist_ok=True)
    data = text.encode() if isinstance(text, str) else text
    (place / "adapter_config.json").write_bytes(data)
    return place


HUGE = {
    "a list": json.dumps({"target_modules": ["x" * 40] * 100_000}),
    "a text": json.dumps({"target_modules": ["x" * 3_000_000]}),
    "an expression": json.dumps({"target_modules": "x" * 3_000_000}),
    "no text": json.dumps({"task_type": ["x" * 3_000_000]}),
    "a number": '{"task_type": 1' + "0" * 100_000 + "}",
}


@pytest.mark.parametrize("name", HUGE)
def test_huge_fields_end_and_do_not_fill_the_message(tmp_path: Path, name: str) -> None:
    message = ""
    try:
        config = lnt.LNTuningConfig.from_pretrained(write_config(tmp_path / "a", HUGE[name]))
        lnt.report_params(PARAMS, config)
    except (lnt.LNTuningError, UserWarning) as found:
        message = str(found)
    assert 0 < len(message) < 3_000


MEANINGS = {
    "[" * 100_000: "nested more than",
    '{"a":' * 5_000 + "1" + "}" * 5_000: "nested more than",
    "[" * (MOST_LEVELS + 1) + "]" * (MOST_LEVELS + 1): "nested more than",
    '{"peft_type": "LN_TUNING", "peft_type": "LORA"}': "'peft_type' appears twice",
    '{"a": {"b": 1, "b": 1}}': "'b' appears twice",
    '{"a": "\\ud800"}': "not Unicode",
    "\xff": "invalid start byte",
    "{": "Expecting property name",
}


@pytest.mark.parametrize("text", MEANINGS, ids=range(len(MEANINGS)))
def test_json_of_no_meaning_or_of_two_is_refused_wherever_it_is_read(
    tmp_path: Path, text: str
) -> None:
    data = text.encode("latin-1")
    with pytest.raises(ValueError, match=MEANINGS[text]):
        parse_json(data)
    with pytest.raises(ConfigError, match=r"adapter_config\.json"):
        lnt.LNTuningConfig.from_pretrained(write_config(tmp_path / "a", data))
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(ModelError, match=r"config\.json"):
        from_config(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_bytes(data)
    with pytest.raises(ModelError, match=r"index\.json"):
        read_weights(tmp_path)
    adapter = lnt.save_adapter(tmp_path / "adapter", leaves(1), CONFIG, base=PARAMS)
    (adapter / "lntune.json").write_bytes(data)
    with pytest.raises(AdapterError, match=r"lntune\.json"):
        lnt.load_adapter(adapter)


def test_a_file_that_is_none_or_too_large_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "adapter_config.json")
    ended: list[BaseException] = []

    def read() -> None:
        try:
            lnt.LNTuningConfig.from_pretrained(tmp_path)
        except ConfigError as error:
            ended.append(error)

    thread = threading.Thread(target=read, daemon=True)  # a pipe would be waited for
    thread.start()
    thread.join(timeout=60)
    assert "no plain file" in str(ended[0])
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(ValueError, match="larger than 16,777,216 bytes"):
        read_json(tmp_path / "large.json")
