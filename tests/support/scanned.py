"""Reference decoders with layers scanned and apart, and how far two results are."""

from __future__ import annotations

import functools

import numpy as np

import lntune_jax as lnt
from lntune_jax import models
from lntune_jax.models import from_pretrained
from tests.support.decoders import REFERENCE, task_of

CLASSIFIERS = ("llama_seq_cls", "gpt2_seq_cls", "olmo2_seq_cls", "phi3_seq_cls")
CONFIG = lnt.LNTuningConfig()
# Of two programs that round in different places; operations one by one agree exactly.
TOLERANCE = 3e-6


@functools.cache
def load(name: str, scan_layers: bool) -> models.PretrainedModel:
    return from_pretrained(REFERENCE / name, task_of(name), scan_layers=scan_layers)


def distance(found, expected) -> float:
    """The largest difference, by the largest number that is expected."""
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


TOKENS = np.random.default_rng(3).integers(4, 60, (2, 12)).astype(np.int32)
