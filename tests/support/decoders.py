"""The decoders' reference checkpoints, and the task of each."""

from __future__ import annotations

from tests.support.checkpoints import REFERENCE as ROOT

REFERENCE = ROOT / "decoders"

# One language model of each, far from its config's defaults.
ARCHITECTURES = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt2"),
    *("olmo2", "phi3"),
)


def task_of(name: str) -> str:
    return "SEQ_CLS" if name.endswith("seq_cls") else "CAUSAL_LM"
