"""What reads strangers' files, each as one function of the bytes of a file.

A target may raise `LNTuningError`, which is how the library refuses; anything else is a fault.
`tests/test_fuzz.py` feeds them with hypothesis, `fuzz/run.py` under the guidance of coverage.
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import lntune_jax as lnt
from lntune_jax.adapters.fingerprint import explain_difference
from lntune_jax.adapters.format import ADAPTER, Kind, Metadata, read_metadata
from lntune_jax.bank import files as bank_files
from lntune_jax.expressions import match_expressions
from lntune_jax.models import from_config, from_pretrained
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
        (self._outer / "inner").mkdir()
        return self._outer / "inner"

    def __exit__(self, *_: object) -> None:
        beside = [path.name for path in self._outer.iterdir()]
        shutil.rmtree(self._outer)
        assert beside == ["inner"], "something was written outside the target"


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
}
