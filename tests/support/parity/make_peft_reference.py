"""Writes tests/reference/peft: adapters that PEFT made, for tests that do without PyTorch.

    python -m tests.support.parity.make_peft_reference

Needs torch, transformers and PEFT.

- `bert_seq_cls`: the adapter that 50 AdamW steps gave on the tiny classifier of
  tests/reference/bert_seq_cls; in run.npz the batches, the losses, and the logits of the first
  batch before and after.
- `llama`: the adapter of a tiny llama, of random values; in parameters.json the names and shapes of
  all the model's parameters.
"""

import json
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peft
import torch
import transformers

from tests.support.parity.exchange import build, move, run_torch, wrap
from tests.support.parity.training import run_peft
from tests.support.paths import REFERENCE

TARGET = REFERENCE / "peft"
STEPS, LEARNING_RATE, DECAY = 50, 3e-2, 0.01  # the decay is torch's default
BATCHES, ROWS, LENGTH, CLASSES, VOCABULARY = 4, 4, 9, 3, 60
LLAMA = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class BertRun(NamedTuple):
    """A training run of PEFT: its model at the end, and what run.npz holds."""

    wrapped: peft.PeftModel
    arrays: dict[str, np.ndarray]


def train_bert() -> BertRun:
    """The run on the classifier."""
    directory = REFERENCE / "bert_seq_cls"
    module = transformers.BertForSequenceClassification.from_pretrained(directory).eval()
    batches = make_batches()
    wrapped = wrap(module, task_type="SEQ_CLS", target_modules=["LayerNorm"])
    before = run_torch(wrapped, batches[0])
    losses = run_peft(wrapped, batches, STEPS, LEARNING_RATE, DECAY)
    stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    arrays = {
        **{name: value.astype(np.int32) for name, value in stacked.items()},
        "losses": losses,
        "logits_before": before,
        "logits_after": run_torch(wrapped, batches[0]),
        "learning_rate": np.array(LEARNING_RATE),
        "weight_decay": np.array(DECAY),
    }
    return BertRun(wrapped, arrays)


def make_batches() -> list[dict[str, np.ndarray]]:
    """Token ids with padding, and labels drawn at random, which the run learns by heart."""
    random = np.random.default_rng(0)
    batches = []
    for _ in range(BATCHES):
        lengths = random.integers(2, LENGTH + 1, ROWS)
        mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int64)
        ids = random.integers(4, VOCABULARY, (ROWS, LENGTH)) * mask
        labels = random.integers(0, CLASSES, ROWS)
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return batches


def make_llama() -> peft.PeftModel:
    """PEFT's default adapter of a llama, moved by noise."""
    return move(wrap(build("LlamaForCausalLM", LLAMA), task_type="CAUSAL_LM"))


def write_adapter(wrapped: peft.PeftModel, name: str) -> None:
    """Has PEFT save an adapter, and keeps its two files."""
    wrapped.peft_config["default"].base_model_name_or_path = name  # no path of this machine
    with tempfile.TemporaryDirectory() as folder:
        wrapped.save_pretrained(folder, save_embedding_layers=False)
        (TARGET / name).mkdir(parents=True, exist_ok=True)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(Path(folder) / file, TARGET / name / file)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """A line for each entry."""
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> None:
    """Write the files anew."""
    torch.set_num_threads(1)
    bert = train_bert()
    write_adapter(bert.wrapped, "bert_seq_cls")
    np.savez_compressed(TARGET / "bert_seq_cls" / "run.npz", **bert.arrays)
    llama = make_llama()
    write_adapter(llama, "llama")
    base = llama.unload()
    shapes = {name: list(value.shape) for name, value in base.named_parameters()}
    write_json(TARGET / "llama" / "parameters.json", shapes)
    modules = (np, torch, transformers, peft)
    versions = {module.__name__: module.__version__.partition("+")[0] for module in modules}
    write_json(TARGET / "versions.json", {"python": platform.python_version(), **versions})


if __name__ == "__main__":
    main()
