"""Tables of names: what the architectures, tasks and checkpoint files call things.

They are data alone, so that a name which differs between two sources is found in one place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ENCODER_TASKS = (None, "SEQ_CLS", "TOKEN_CLS", "MASKED_LM")
TASKS = (*ENCODER_TASKS, "CAUSAL_LM")
POOLINGS = (None, "mean")
# Not float16: its narrow range asks for loss scaling, and JAX's attention refuses it on CPU.
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Architecture:
    """What tells one model of the BERT family from another.

    Attributes:
        prefix: the attribute under which a model with a head keeps its encoder.
        positions_follow_padding: whether positions count the tokens that are not padding, from
            the padding id plus one, rather than the columns from zero.
        pooled_classifier: whether the sequence classifier reads the pooler's output.
        masked_lm_head: the attribute that holds the masked language model's head.
    """

    prefix: str
    positions_follow_padding: bool
    pooled_classifier: bool
    masked_lm_head: str


ARCHITECTURES = {
    "bert": Architecture("bert", False, True, "cls"),
    "roberta": Architecture("roberta", True, False, "lm_head"),
}

# How safetensors names the types of numbers that weights can be read from.
FLOATING_TYPES = ("F64", "F32", "F16", "BF16")

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# An id on the hub: a name, or an owner and a name; paths begin with a dot or have more parts.
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
HUB_PATTERNS = ("*.json", "*.safetensors", "vocab.txt", "merges.txt", "*.model")
