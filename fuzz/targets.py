"""What reads strangers' files, or writes under their names, as functions of the bytes of a file.

A target may raise `LNTuningError`, which is how the library refuses; anything else is a fault.
`tests/test_fuzz.py` feeds them with hypothesis, `fuzz/run.py` under the guidance of coverage.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import shutil
import struct
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import lntune_jax as lnt
from lntune_jax.adapters.fingerprint import explain_difference
from lntune_jax.adapters.format import ADAPTER, Kind, Metadata, read_metadata
from lntune_jax.bank import files as bank_files
from lntune_jax.expressions import match_expressions
from lntune_jax.models import from_config, from_pretrained, merge_checkpoint
from lntune_jax.models.loading.safetensors import read_weights
from lntune_jax.models.loading.sources import read_config
from lntune_jax.storage.sealed import METADATA_FILE, parse_json, seal_json

PARAMS: dict[str, Any] = {
    "model": {
        "layers": {"0": {"norm": {"scale": np.ones(4, np.float32)}}},
        "norm": {"scale": np.ones(4, np.float32)},
    },
    "lm_head": {"kernel": np.ones((4, 3), np.float32)},
}
CONFIG = lnt.LNTuningConfig(target_modules=["norm"])
LLAMA = {
    "model_type": "llama",
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "id2label": {"0": "no", "1": "yes"},
    "eos_token_id": [1, 2],
}


class Target(NamedTuple):
    """One reader.

    Attributes:
        feed: hands it the bytes of a file.
        seeds: files to start from; the first is one that it takes.
    """

    feed: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


def run(target: Target, content: bytes) -> bool:
    """Feeds a target; says whether it took the file rather than refused it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            target.feed(content)
        except lnt.LNTuningError as error:
            message = str(error)
        else:
            return True
    if len(message.encode()) > 20_000:  # which also means that it can be printed
        raise ValueError(f"a message as long as the file: {message[:200]}")
    return False


class _Place:
    """A directory to write the file into, with nothing else beside it."""

    def __enter__(self) -> Path:
        self._outer = Path(tempfile.mkdtemp())
        # So deep that a name such as ../../../x still ends within what is looked at.
        self._inner = self._outer / "1" / "2" / "3" / "4" / "inner"
        self._inner.mkdir(parents=True)
        return self._inner

    def __exit__(self, *_: object) -> None:
        own = {self._inner, *self._inner.parents}
        found = [path for path in self._outer.rglob("*") if path not in own]
        strays = [path for path in found if self._inner not in path.parents]
        shutil.rmtree(self._outer)
        assert not strays, f"written outside the target: {strays[:3]}"


def feed_config(content: bytes) -> None:
    """`adapter_config.json`: its fields, and its patterns against a tree."""
    with _Place() as place:
        (place / "adapter_config.json").write_bytes(content)
        config = lnt.LNTuningConfig.from_pretrained(place)
    lnt.report_params(PARAMS, config)
    lnt.LNTuningConfig.from_dict(config.to_dict())


def feed_metadata(content: bytes) -> None:
    """`lntune.json` of an adapter."""
    metadata = _feed_sealed(content, ADAPTER)
    explain_difference(metadata.base, {"lm_head.kernel": PARAMS["lm_head"]["kernel"]})


def feed_bank(content: bytes) -> None:
    """`lntune.json` of a bank, and the rows in it."""
    bank_files.parse_rows(Path(METADATA_FILE), _feed_sealed(content, bank_files.BANK).rows)


def _feed_sealed(content: bytes, kind: Kind) -> Metadata:
    """Metadata with a right checksum: whoever writes one can compute it."""
    with _Place() as place:
        try:
            fields = parse_json(content)
        except ValueError:
            fields = None
        if isinstance(fields, dict):
            fields.pop("sha256", None)
            with contextlib.suppress(ValueError):  # Infinity, which no sealed file can hold
                content = seal_json(fields).encode()
        (place / METADATA_FILE).write_bytes(content)
        return read_metadata(place, kind)


def feed_safetensors(content: bytes) -> None:
    """A safetensors file: as PEFT's adapter, as a model's weights, and as a base to merge into."""
    with _Place() as place:
        CONFIG.save_pretrained(place)
        (place / "adapter_model.safetensors").write_bytes(content)
        (place / "model.safetensors").write_bytes(content)
        refusals = []
        for read in (
            lambda: lnt.load_peft(place, PARAMS),
            lambda: _read_weights(place),
        ):
            try:
                read()
            except lnt.LNTuningError as error:
                refusals.append(error)
    if refusals:
        raise refusals[0]


def _read_weights(place: Path) -> None:
    weights = read_weights(place)
    for key in weights.tensors:
        weights.shape(key)


def feed_index(content: bytes) -> None:
    """`model.safetensors.index.json`, whose names lead to files."""
    from safetensors.numpy import save_file

    with _Place() as place:
        save_file({"a": np.ones(2, np.float32)}, place / "model-1.safetensors")
        (place / "model.safetensors.index.json").write_bytes(content)
        _read_weights(place)


def feed_model_config(content: bytes) -> None:
    """`config.json`: the model's shapes come from it."""
    with _Place() as place:
        (place / "config.json").write_bytes(content)
        config = read_config(place)
    from_config(config, "CAUSAL_LM")


def feed_gguf(content: bytes) -> None:
    """A GGUF file: metadata, config, shapes and tensors."""
    with _Place() as place:
        (place / "model.gguf").write_bytes(content)
        from_pretrained(place / "model.gguf", "CAUSAL_LM")


def feed_pattern(content: bytes) -> None:
    """A pattern against a few paths."""
    pattern = content.decode("utf-8", errors="replace")
    long = "model.layers.10.self_attn.q_norm.weight"
    match_expressions([pattern], ["model.layers.0.norm", long, "", "a" * 80])


def feed_names(content: bytes) -> None:
    """Names of modules and of adapters, written by all that writes, and read again."""
    modules, adapters = _read_names(content)
    params = {name: {"norm": {"scale": np.ones(2, np.float32)}} for name in modules}
    trainable, _ = lnt.partition_params(params, CONFIG)
    tuned = {path: leaf * (2 + number) for number, (path, leaf) in enumerate(trainable.items())}
    refusals = []
    with _Place() as place:

        def as_adapter() -> None:
            path = lnt.save_adapter(place / "adapter", tuned, CONFIG, base=params)
            _check_same(lnt.load_adapter(path).trainable, tuned)
            lnt.restore_adapter(path, params)

        def as_peft() -> None:
            path = lnt.export_peft(place / "peft", tuned, CONFIG, base=params)
            _check_same(lnt.load_peft(path, params).trainable, tuned)

        def as_bank() -> None:
            made = lnt.bank.make_bank(params, dict.fromkeys(adapters, tuned), on_host=True)
            path = lnt.bank.save_bank(place / "bank", made, base=params)
            assert set(lnt.bank.load_bank(path, params, on_host=True).names) >= set(adapters)

        for write in (as_adapter, as_peft, as_bank):
            try:
                write()
            except lnt.LNTuningError as error:
                refusals.append(error)
    if refusals:
        raise refusals[0]


def _read_names(content: bytes) -> tuple[list[str], list[str]]:
    try:
        found = parse_json(content)
    except ValueError as error:
        raise lnt.LNTuningError("no names") from error
    lists = [found.get(key) for key in ("modules", "adapters")] if isinstance(found, dict) else []
    if not all(isinstance(names, list) and names for names in lists) or not lists:
        raise lnt.LNTuningError("no names")
    # As names of a tree's modules and of adapters only text can come.
    return tuple(list(dict.fromkeys(map(str, names)))[:8] for names in lists)  # pyright: ignore


def _check_same(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys(), "other leaves came back"
    assert all(np.array_equal(found[path], leaf) for path, leaf in expected.items())


def feed_merge(content: bytes) -> None:
    """The index of a base that an adapter is merged into: its names are those of files to write."""
    with _Place() as place:
        shutil.copytree(_base(), place, dirs_exist_ok=True)
        before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        (place / "base" / "model.safetensors.index.json").write_bytes(content)
        try:
            merge_checkpoint(place / "base", place / "adapter", place / "merged")
        finally:
            del before[place / "base" / "model.safetensors.index.json"]
            assert all(path.read_bytes() == old for path, old in before.items())


@cache
def _base() -> Path:
    """A base in two files, and an adapter of it."""
    from safetensors.numpy import save_file

    place = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    (place / "base").mkdir()
    (place / "base" / "config.json").write_text(json.dumps(LLAMA))
    model = from_config(LLAMA, "CAUSAL_LM")
    tensors = {"model.norm.weight": np.ones(8, np.float32)}
    save_file(tensors, place / "base" / "model-2.safetensors", {"format": "pt"})
    layer = {f"model.layers.0.{name}_layernorm.weight": np.ones(8, np.float32) for name in _NORMS}
    save_file(layer, place / "base" / "model-1.safetensors", {"format": "pt"})
    weights = dict.fromkeys(layer, "model-1.safetensors")
    weights |= dict.fromkeys(tensors, "model-2.safetensors")
    index = {"metadata": {}, "weight_map": weights}
    (place / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    config = lnt.LNTuningConfig(task_type="CAUSAL_LM")
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), model.params)
    trainable = lnt.partition_params(params, config).trainable
    tuned = {path: leaf * 2 for path, leaf in trainable.items()}
    lnt.save_adapter(place / "adapter", tuned, config, base=params)
    return place


_NORMS = ("input", "post_attention")


def make_names() -> list[bytes]:
    texts: list[Any] = [
        {"modules": ["layers.0", "block"], "adapters": ["german", "french"]},
        {"modules": ["../../x", "a/b"], "adapters": ["../../x", "/etc/passwd"]},
        {"modules": ["a", "A"], "adapters": ["base", ""]},
    ]
    return [json.dumps(text).encode() for text in texts]


def make_merge() -> list[bytes]:
    return [(_base() / "base" / "model.safetensors.index.json").read_bytes()]


def make_config() -> list[bytes]:
    texts = [
        {"peft_type": "LN_TUNING", "target_modules": [".*norm", "norm"], "task_type": "CAUSAL_LM"},
        {"target_modules": r"model\.(layers\.\d+\.)?norm", "exclude_modules": ["0.norm"]},
        {"modules_to_save": ["lm_head"], "inference_mode": True, "auto_mapping": {"a": [1, None]}},
    ]
    return [json.dumps(text).encode() for text in texts]


def make_metadata() -> list[bytes]:
    with _Place() as place:
        tuned = {name: value * 2 for name, value in _list_norms().items()}
        path = lnt.save_adapter(place / "a", tuned, CONFIG, base=PARAMS)
        return [(path / METADATA_FILE).read_bytes()]


def make_bank() -> list[bytes]:
    bank = lnt.bank.make_bank(PARAMS, {"a": _list_norms()}, on_host=True)
    with _Place() as place:
        path = lnt.bank.save_bank(place / "b", bank, base=PARAMS)
        return [(path / METADATA_FILE).read_bytes()]


def make_safetensors() -> list[bytes]:
    with _Place() as place:
        path = lnt.export_peft(place / "a", _list_norms(), CONFIG, base=PARAMS)
        first = (path / "adapter_model.safetensors").read_bytes()
    header = (
        b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    )
    return [first, struct.pack("<Q", len(header)) + header + bytes(8)]


def make_index() -> list[bytes]:
    return [json.dumps({"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}).encode()]


def make_model_config() -> list[bytes]:
    bert = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 9}
    return [json.dumps(LLAMA).encode(), json.dumps(bert).encode()]


def make_gguf() -> list[bytes]:
    import gguf

    with _Place() as place:
        file = place / "model.gguf"
        writer = gguf.GGUFWriter(file, "llama")
        for key, value in {
            "context_length": 32,
            "embedding_length": 8,
            "block_count": 1,
            "feed_forward_length": 8,
            "attention.head_count": 2,
            "attention.head_count_kv": 1,
        }.items():
            writer.add_uint32(f"llama.{key}", value)
        writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
        writer.add_array("tokenizer.ggml.scores", [0.5, 1.0])
        shapes = {"token_embd": (16, 8), "output_norm": (8,), "output": (16, 8)}
        layer = {"attn_norm": (8,), "ffn_norm": (8,), "attn_q": (8, 8), "attn_k": (4, 8)}
        layer |= {"attn_v": (4, 8), "attn_output": (8, 8)}
        layer |= {"ffn_gate": (8, 8), "ffn_up": (8, 8), "ffn_down": (8, 8)}
        shapes |= {f"blk.0.{name}": shape for name, shape in layer.items()}
        for name, shape in shapes.items():
            writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return [file.read_bytes()]


def make_patterns() -> list[bytes]:
    return [rb"(?i).*norm(_\d+)?", rb"^(?!.*q_norm)model\..*$", rb"([a-z]+\.){2,5}[^.]+|x*?"]


def _list_norms() -> dict[str, Any]:
    return dict(lnt.partition_params(PARAMS, CONFIG).trainable)


TARGETS = {
    "config": Target(feed_config, make_config),
    "metadata": Target(feed_metadata, make_metadata),
    "bank": Target(feed_bank, make_bank),
    "safetensors": Target(feed_safetensors, make_safetensors),
    "index": Target(feed_index, make_index),
    "model_config": Target(feed_model_config, make_model_config),
    "gguf": Target(feed_gguf, make_gguf),
    "pattern": Target(feed_pattern, make_patterns),
    "names": Target(feed_names, make_names),
    "merge": Target(feed_merge, make_merge),
}
