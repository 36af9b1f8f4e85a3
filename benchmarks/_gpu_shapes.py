"""What `gpu.py` measures: the shapes of models, and what devices can compute."""

from dataclasses import dataclass
from types import SimpleNamespace


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
