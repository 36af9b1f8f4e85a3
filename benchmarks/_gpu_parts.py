"""What `gpu.py` measures: shapes of models, and parts that hand over figures as they find them.

Parts stand most telling first: what does not fit the time is left out at the end.
"""

import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A Llama and a batch for it."""

    width: int
    inner: int
    layers: int
    heads: int
    shared: int
    head: int
    words: int
    tied: bool
    batch: int
    length: int

    @property
    def multiplied(self) -> int:
        """N of "4N": parameters of matrix products. A table that is only looked up is none."""
        attention = 2 * self.width * self.head * (self.heads + self.shared)
        layer = attention + 3 * self.width * self.inner
        return self.layers * layer + self.words * self.width

    def fields(self) -> dict:
        """Of a transformers config."""
        return {
            "vocab_size": self.words,
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.shared,
            "head_dim": self.head,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        }

    def config(self) -> SimpleNamespace:
        """The config without transformers, which need not be there."""
        rest = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
        rest |= {"attention_dropout": 0.0, "initializer_range": 0.02, "num_labels": 2}
        return SimpleNamespace(model_type="llama", pad_token_id=None, **self.fields(), **rest)


SHAPES = {
    # Llama-3.2-3B, and the batch of PEFT's own benchmark.
    "3B": Shape(3072, 8192, 28, 24, 8, 128, 128256, tied=True, batch=4, length=768),
    # Llama-3.1-8B.
    "8B": Shape(4096, 14336, 32, 32, 8, 128, 128256, tied=False, batch=4, length=768),
    "tiny": Shape(64, 128, 2, 4, 2, 16, 512, tied=True, batch=2, length=32),
}

# Dense bfloat16 FLOP/s by the vendors' datasheets; the first name that the device's holds.
PEAKS = {
    "B200": 2250e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def find_peak(device: str) -> float | None:
    """The device's FLOP/s, `None` where the table does not know it."""
    return next((rate for name, rate in PEAKS.items() if name in device), None)


@dataclass(frozen=True)
class Part:
    """One process of its own.

    Attributes:
        name: of the row.
        shape: a key of `SHAPES`, or "small" and "large" for the first and the second one asked for.
        side: "jax" or "torch".
        limit: seconds after which it is stopped.
        spec: what the process is told besides.
    """

    name: str
    shape: str
    side: str
    limit: int
    spec: Mapping[str, Any] = field(default_factory=dict)


def _ours(name: str, shape: str, limit: int = 120, method: str = "ln", **spec: Any) -> Part:
    return Part(name, shape, "jax", limit, {"method": method, **spec})


def _torch(name: str, shape: str, limit: int = 90, method: str = "ln", **spec: Any) -> Part:
    return Part(name, shape, "torch", limit, {"method": method, **spec})


# Scanned layers compile in seconds; LoRA is put into a traced loss, which needs them apart.
PARTS = (
    Part("matrix products", "small", "jax", 60, {"method": "peak"}),
    _ours("ours", "small"),
    _torch("PEFT, eager", "small"),
    _ours("ours, remat dots_saveable", "small", remat="dots_saveable"),
    _ours("ours, layers apart", "small", 180, scan=False),
    _torch("PEFT, compiled", "small", 180, compiled=True),
    _ours("ours", "large"),
    _torch("PEFT, eager", "large"),
    _ours("ours, remat dots_saveable", "large", remat="dots_saveable"),
    _ours("largest batch, ours", "small", 150, largest=True),
    _torch("largest batch, PEFT", "small", largest=True),
    _ours("LoRA r=8, JAX", "small", 180, "lora", scan=False),
    _torch("LoRA r=8, PEFT", "small", method="lora"),
    _ours("full, JAX", "small", method="full"),
    _torch("full, PyTorch", "small", method="full"),
    _ours("largest batch, ours, remat full", "small", 150, largest=True, remat="full"),
    _ours("full, JAX", "large", method="full"),
    _torch("full, PyTorch", "large", method="full"),
    _ours("full, float32 masters, JAX", "large", method="full", masters=True),
    _torch("LoRA r=8, PEFT", "large", method="lora"),
    _ours("LoRA r=8, JAX", "large", 180, "lora", scan=False),
    _torch("PEFT, compiled", "large", 180, compiled=True),
    _ours("ours, logits whole", "small", chunk=128256),
    _ours("ours, XLA's attention", "small", attention="xla"),
    _ours(
        "ours, remat dots_with_no_batch_dims_saveable",
        "small",
        remat="dots_with_no_batch_dims_saveable",
    ),
    _ours("ours, remat full", "small", remat="full"),
)

MARK = "FIGURES "


def emit(**figures: object) -> None:
    """Hands over figures at once: a later failure or a kill loses none of them."""
    print(MARK + json.dumps(figures), flush=True)


def read_figures(output: str) -> dict:
    """All that a part has handed over."""
    figures: dict = {}
    for line in output.splitlines():
        if line.startswith(MARK):
            try:
                figures |= json.loads(line.removeprefix(MARK))
            except json.JSONDecodeError:  # killed while it wrote
                continue
    return figures


def describe(error: BaseException) -> str:
    """An error's first line, with no folders of this machine in it."""
    lines = str(error).strip().splitlines()
    return clean(f"{type(error).__name__}: {lines[0] if lines else ''}")


def clean(text: str) -> str:
    """A line fit for a table: short, and without folders."""
    return re.sub(r"(/[\w.+@-]+){2,}", "...", text)[:200]


def run_part(part: Callable[[dict], None]) -> None:
    """Runs a part with the specification on the command line."""
    try:
        part(json.loads(sys.argv[1]))
    except Exception as error:
        emit(error=describe(error))
        raise


def time_steps(step: Callable[[], None], wait: Callable[[], None], seconds: float) -> float:
    """Seconds of one step: the median of groups that are waited for once, as a loop would."""
    step()
    wait()
    start = time.perf_counter()
    step()
    wait()
    once = time.perf_counter() - start
    group = max(1, min(50, round(seconds / 3 / max(once, 1e-6))))
    found = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(group):
            step()
        wait()
        found.append((time.perf_counter() - start) / group)
    return statistics.median(found)


def find_largest(
    run: Callable[[int], float], bytes_of: Callable[[int], float], limit: float, first: int
) -> None:
    """Hands over the largest batch that fits: by two sizes' bytes, then by trying.

    Args:
        run: takes steps with a batch, and gives seconds of one; any error is "does not fit".
        bytes_of: the bytes of a step with a batch.
        limit: bytes that there are.
        first: a batch that fits.
    """
    few, more = bytes_of(first), bytes_of(2 * first)
    each = max((more - few) / first, 1.0)
    batch = max(first, int(first + (limit - few) / each))
    emit(bytes_per_row=round(each), predicted_batch=batch)
    while batch >= first:
        try:
            seconds = run(batch)
        except Exception as error:
            emit(last_refused=batch, refused_with=describe(error))
            batch = min(batch - 1, int(batch * 0.96))
            continue
        emit(largest_batch=batch, step_seconds=seconds)
        return
