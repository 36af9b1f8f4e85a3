"""The decoders' reference checkpoints, and the task of each."""

from __future__ import annotations

from tests.support.checkpoints import REFERENCE as ROOT

REFERENCE = ROOT / "decoders"


def task_of(name: str) -> str:
    return "SEQ_CLS" if name.endswith("seq_cls") else "CAUSAL_LM"
