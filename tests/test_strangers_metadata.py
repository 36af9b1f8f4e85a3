"""Names, shapes and fingerprints in the metadata of an adapter that a stranger has made."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.adapters.format import check_fields
from lntune_jax.errors import AdapterError
from lntune_jax.storage.sealed import parse_json
from tests.support.adapters import reseal
from tests.support.directories import CONFIG, NOISE, PARAMS, leaves

NAMES = [
    "..",
    "../../evil",
    "/etc/evil",
    "_METADATA",
    "a\0b",
    "é",
    "e\u0301",
    "\u217ca",
    "x" * 4000,
]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_leaves_lead_nowhere(tmp_path: Path, name: str) -> None:
    """Whatever a leaf is called, its adapter is one directory, and comes back under that name."""
    params = {name: {"norm": {"scale": np.ones(4, np.float32)}}}
    config = lnt.LNTuningConfig()
    trainable, _ = lnt.partition_params(params, config)
    target = tmp_path / "deep" / "er" / "adapter"
    lnt.save_adapter(target, trainable, config, base=params)
    assert lnt.load_adapter(target).trainable.keys() == trainable.keys()
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    inside = {path for path in found if path.startswith("deep/er/adapter/")}
    assert found - inside == {"deep", "deep/er", "deep/er/adapter"}
    bank = lnt.bank.make_bank(params, {name: trainable}, on_host=True)
    lnt.bank.save_bank(tmp_path / "bank", bank, base=params)
    assert lnt.bank.load_bank(tmp_path / "bank", params, on_host=True).names == ("base", name)


def test_names_that_look_alike_are_two(tmp_path: Path) -> None:
    """Names are compared as they are written, and none becomes a path."""
    alike = {"é": leaves(1), "e\u0301": leaves(2), "admin": leaves(3), "\u0430dmin": leaves(4)}
    bank = lnt.bank.make_bank(PARAMS, alike, on_host=True)
    lnt.bank.save_bank(tmp_path / "bank", bank, base=PARAMS)
    found = lnt.bank.load_bank(tmp_path / "bank", PARAMS, on_host=True)
    for number, name in enumerate(alike, start=1):
        value = lnt.bank.get_adapter(found, name).trainable["model.norm.scale"]
        assert (value - NOISE == number).all()


METADATA: dict[str, Any] = {
    "leaves": [None, [], {"a": 1}, {"a": {}}, {"a": {"shape": [-1]}}],
    "files": [None, {"../../x": None}, {"a": {"size": "1", "sha256": ""}}],
    "norms": [5, "norm", [["a"]], [None]],
    "task": [5, "text", ["labels"]],
    "base": [None, {}, {"leaves": 1}, {"leaves": {"a": 1}}, {"leaves": {}, "quantized": 5}],
}


@pytest.mark.parametrize("field", METADATA)
def test_metadata_of_another_kind_with_a_right_checksum(tmp_path: Path, field: str) -> None:
    path = lnt.save_adapter(tmp_path / "a", leaves(1), CONFIG, base=PARAMS)
    good = (path / "lntune.json").read_text()
    for value in METADATA[field]:
        reseal(path, lambda fields, value=value: fields.update({field: value}))
        with pytest.raises(AdapterError, match=r"lntune\.json .*(does not hold|lacks)"):
            lnt.restore_adapter(path, PARAMS)
        (path / "lntune.json").write_text(good)


@pytest.mark.parametrize(
    ("shape", "message"),
    [([2**40], "bytes of arrays in"), ([2**62, 2**62], "shape"), ([8192], "shape"), ([], "shape")],
)
def test_shapes_in_metadata_take_no_memory(tmp_path: Path, shape: list[int], message: str) -> None:
    path = lnt.save_adapter(tmp_path / "a", leaves(1), CONFIG, base=PARAMS)

    def enlarge(fields: dict[str, Any]) -> None:
        fields["leaves"]["model.norm.scale"]["shape"] = shape

    reseal(path, enlarge)
    with pytest.raises(AdapterError, match=message):
        lnt.load_adapter(path)


FINGERPRINTS = [
    "float32[2,3] 1 1 1",
    "float32[2,3] 1 1 1 2",
    "float32[2,3] 1 1 1 1e9999",
    "float32[2,3] 1 1 1 1; import os",
    "int32[2,3] 1 1 1 1",
    "object[2,3] 1 1 1 1",
    "float32[3,2] 1 1 1 1",
    "float32[2,3",
    "float32[99999999999999999999999] 1 1 1 1",
    5,
]


@pytest.mark.parametrize("record", FINGERPRINTS)
def test_fingerprints_that_mean_nothing_are_refused(tmp_path: Path, record: Any) -> None:
    path = lnt.save_adapter(tmp_path / "a", leaves(1), CONFIG, base=PARAMS)
    reseal(path, lambda fields: fields["base"]["leaves"].update({"lm_head.kernel": record}))
    with pytest.raises(AdapterError, match=r"another base|lntune\.json"):
        lnt.restore_adapter(path, PARAMS)


def test_a_name_that_is_twice_among_very_many_is_found_at_once() -> None:
    names = ", ".join(f'"k{number}": 0' for number in range(200_000))
    with pytest.raises(ValueError, match="'z' appears twice"):
        parse_json(f'{{{names}, "z": 1, "z": 1}}'.encode())


def test_a_shape_of_very_many_axes_is_refused_before_it_is_multiplied() -> None:
    record = {"shape": [2**62] * 200_000, "dtype": "float32", "sha256": ""}
    with pytest.raises(ValueError, match="has the shape"):
        check_fields({"leaves": {"ln.scale": record}, "files": {}, "norms": None})
