"""Readers of strangers' files: whatever is in them, the answer is a value or a refusal.

A small budget here; `LNTUNE_EXAMPLES=10000` for the long run, and `fuzz/run.py` for the one that
is guided by coverage (`fuzz/results.json` says what has been run).
"""

import json
import struct
import sys
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT / "fuzz"))
from targets import TARGETS, run

SETTINGS = settings(suppress_health_check=list(HealthCheck))

names = st.sampled_from(
    [
        "..",
        "../../x",
        "/etc/passwd",
        "_METADATA",
        "a\0b",
        "",
        "é",
        "e\u0301",
        "\u217cayers",
        "a" * 5000,
    ]
)
numbers = st.sampled_from([-1, 0, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 1e308, True])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | names | numbers
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text() | names, inner), max_leaves=8
)


@cache
def seeds(name):
    return TARGETS[name].seeds()


@pytest.mark.parametrize("name", TARGETS)
def test_the_first_seed_is_taken(name):
    assert run(TARGETS[name], seeds(name)[0])


@pytest.mark.parametrize("name", TARGETS)
@SETTINGS
@given(data=st.data())
def test_bytes_that_are_changed_cut_or_put_in(name, data):
    content = bytearray(data.draw(st.sampled_from(seeds(name))))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(len(content) - 1, 0)))
        change = data.draw(st.sampled_from(["flip", "cut", "insert", "number"]))
        if change == "flip" and content:
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        elif change == "cut":
            del content[place : place + data.draw(st.integers(1, 64))]
        elif change == "insert":
            content[place:place] = data.draw(st.binary(min_size=1, max_size=16))
        else:
            size = data.draw(st.sampled_from(["<I", "<Q"]))
            most = 2 ** (8 * struct.calcsize(size)) - 1
            number = data.draw(st.integers(0, most) | st.just(most))
            content[place : place + struct.calcsize(size)] = struct.pack(size, number)
    run(TARGETS[name], bytes(content))


def change_within(data, value):
    """One value somewhere in a JSON tree replaced, removed, or put in beside it."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 4)):
        key = data.draw(st.sampled_from(sorted(value)))
        match data.draw(st.sampled_from(["within", "within", "rename", "remove"])):
            case "within":
                return {**value, key: change_within(data, value[key])}
            case "rename":
                rest = {name: each for name, each in value.items() if name != key}
                return {**rest, data.draw(names): value[key]}
            case _:
                return {name: each for name, each in value.items() if name != key}
    if isinstance(value, list) and value and data.draw(st.integers(0, 4)):
        place = data.draw(st.integers(0, len(value) - 1))
        return [*value[:place], change_within(data, value[place]), *value[place + 1 :]]
    return data.draw(values)


def write(value):
    """JSON as strangers may write it, with NaN, and halves of surrogate pairs."""
    return json.dumps(value).encode()


@pytest.mark.parametrize("name", ["config", "metadata", "bank", "index", "model_config"])
@SETTINGS
@given(data=st.data())
def test_json_with_other_values(name, data):
    value = json.loads(data.draw(st.sampled_from(seeds(name))))
    for _ in range(data.draw(st.integers(1, 3))):
        value = change_within(data, value)
    run(TARGETS[name], write(value))


@SETTINGS
@given(data=st.data())
def test_safetensors_headers_with_other_values(data):
    first = data.draw(st.sampled_from(seeds("safetensors")))
    (length,) = struct.unpack("<Q", first[:8])
    header = json.loads(first[8 : 8 + length])
    for _ in range(data.draw(st.integers(1, 3))):
        header = change_within(data, header)
    text = write(header)
    run(TARGETS["safetensors"], struct.pack("<Q", len(text)) + text + first[8 + length :])


@SETTINGS
@given(st.text(alphabet=r"ab.*+?()[]{}|^$\d1,=!:<i-", max_size=60) | st.text(max_size=20))
def test_patterns_of_any_characters(text):
    run(TARGETS["pattern"], text.encode("utf-8", errors="replace"))
