"""Headers, indexes and configs that lie about what follows; and no pickle, no `eval`."""

import ast
import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.errors import AdapterError, ModelError
from lntune_jax.models import from_config, from_pretrained
from lntune_jax.models.loading.gguf_header import check_header
from lntune_jax.models.loading.safetensors import read_weights
from tests.support.directories import CONFIG, PARAMS


def write_safetensors(file: Path, header: Any, body: bytes = bytes(16)) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


def tensor(shape: list[int], start: int = 0, end: int = 16, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


KEY = "base_model.model.model.norm.ln_tuning_layers.weight"
HEADERS = {
    "negative": {KEY: tensor([-4])},
    "overflowing": {KEY: tensor([2**63, 4])},
    "wider than 64 bits": {KEY: tensor([2**64])},
    "empty and huge": {KEY: tensor([0, 2**62, 2**62], 0, 0)},
    "empty and wider": {KEY: tensor([0, 2**64 - 1], 0, 0)},
    "past the end": {KEY: tensor([4], 2**40, 2**40 + 16)},
    "backwards": {KEY: tensor([4], 16, 0)},
    "overlapping": {KEY: tensor([4]), "b": tensor([4], 8, 24)},
    "twice in one place": {KEY: tensor([4]), "b": tensor([4])},
    "a hole": {KEY: tensor([2], 8, 16)},
    "of texts": {KEY: {"dtype": "F32", "shape": ["4"], "data_offsets": ["0", "16"]}},
    "another type": {KEY: tensor([4], dtype="PICKLE")},
    "named twice": b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
    b'"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
    "deep": b'{"a":' + b"[" * 50_000,
    "no object": b"[]",
    "metadata of lists": {"__metadata__": {"format": []}, KEY: tensor([4])},
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_lie(tmp_path: Path, name: str) -> None:
    CONFIG.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    for file in ("adapter_model.safetensors", "model.safetensors"):
        write_safetensors(tmp_path / file, HEADERS[name])
    for read in (
        lambda: lnt.load_peft(tmp_path, PARAMS),
        lambda: from_pretrained(tmp_path),
        lambda: lnt.models.merge_checkpoint(tmp_path, tmp_path, tmp_path.parent / "merged"),
    ):
        with pytest.raises(lnt.LNTuningError):
            read()


@pytest.mark.parametrize("length", [0, 10**8, 2**63, 2**64 - 1])
def test_headers_said_to_be_longer_than_the_file(tmp_path: Path, length: int) -> None:
    CONFIG.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(AdapterError, match="damaged or cut short"):
        lnt.load_peft(tmp_path, PARAMS)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x.safetensors", "/x.safetensors", "a\0.safetensors", "x.bin", "a/b"]
)
def test_an_index_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    index = {"weight_map": {"a": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="no plain file name"):
        read_weights(tmp_path)


CONFIGS = {
    "layers": {"num_hidden_layers": 10**9},
    "labels": {"num_labels": 10**9},
    "width": {"head_dim": 10**9},
    "a number of 64 bits": {"vocab_size": 2**63},
    "deep within": {"rope_parameters": {"factor": [2**70]}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_numbers_in_a_config_make_no_long_lists(tmp_path: Path, name: str) -> None:
    fields = {"model_type": "llama", **CONFIGS[name]}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ModelError, match="config field"):
        from_config(tmp_path)


def gguf_bytes(field: bytes, tensors: int = 0, fields: int = 1) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + field


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


LIST, BYTE = 9, 0
LIST_TYPE = struct.pack("<I", LIST)
LONG_LIST = text(b"a") + struct.pack("<IIQ", LIST, BYTE, 2**24)
GGUF = {
    "many tensors": gguf_bytes(b"", tensors=2**60, fields=0),
    "many fields": gguf_bytes(b"", fields=2**60),
    "a list without end": gguf_bytes(text(b"a") + struct.pack("<IIQ", LIST, BYTE, 2**62)),
    "a list of many": gguf_bytes(
        text(b"a") + struct.pack("<IIQ", LIST, BYTE, 2**24) + bytes(2**24)
    ),
    "lists in lists": gguf_bytes(
        text(b"a") + struct.pack("<I", LIST) + struct.pack("<IQ", LIST, 1) * 99
    ),
    "a long name": gguf_bytes(struct.pack("<Q", 2**63)),
    "an unknown type": gguf_bytes(text(b"a") + struct.pack("<I", 77)),
    "many axes": gguf_bytes(text(b"a") + struct.pack("<I", 2**31) + bytes(64), 1, 0),
    "another file": b"PK\3\4" + bytes(100),
}


@pytest.mark.parametrize("name", GGUF)
def test_counts_in_a_gguf_file_fit_it(tmp_path: Path, name: str) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(GGUF[name])
    with pytest.raises(ValueError, match=r"."):
        check_header(file)
    with pytest.raises(ModelError, match=r"model\.gguf: damaged or cut short"):
        from_pretrained(file)


@pytest.mark.parametrize("name", ["..", "../../evil", "/etc/evil", "blk.0.\u0430ttn_norm.weight"])
def test_names_of_gguf_tensors_lead_nowhere(tmp_path: Path, name: str) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor(name, np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="is none that this architecture's models have"):
        from_pretrained(tmp_path / "model.gguf")


FORBIDDEN = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "torch.load",
}


def test_no_pickle_is_read_and_no_text_is_run() -> None:
    """Over the syntax of every module of the package, so that comments may speak of them."""
    found = []
    for file in sorted(Path(lnt.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                names = [name]
                if name in ("eval", "exec", "compile", "__import__"):
                    found.append(f"{file.name}:{node.lineno} {name}")
                wanted = ("allow_pickle", "trust_remote_code", "shell")
                for keyword in node.keywords:
                    if keyword.arg in wanted and ast.unparse(keyword.value) != "False":
                        found.append(f"{file.name}:{node.lineno} {keyword.arg}")
            found += [f"{file.name}:{node.lineno} {name}" for name in names if name in FORBIDDEN]
    assert found == []
