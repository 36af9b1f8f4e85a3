"""Tables of names: what the architectures, tasks and checkpoint files call things.

They are data alone, so that a name which differs between two sources is found in one place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TASKS = (None, "SEQ_CLS", "TOKEN_CLS", "MASKED_LM")
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

# The last segment of a leaf path here: the one PyTorch uses for it.
TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}

# What checkpoints converted from TensorFlow call the leaves of a LayerNorm.
TENSORFLOW_LEAVES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

# The output bias goes by two names, of which a file may hold only one.
OUTPUT_BIASES = {
    "cls.predictions.bias": "cls.predictions.decoder.bias",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "lm_head.bias": "lm_head.decoder.bias",
    "lm_head.decoder.bias": "lm_head.bias",
}

# Tied output weights that a file may hold beside the word embeddings they equal.
TIED_WEIGHTS = ("cls.predictions.decoder.weight", "lm_head.decoder.weight")
WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"

# Modules that a checkpoint may lack, all their leaves together, and gets at random for a task.
FRESH_MODULES = {
    None: (),
    "SEQ_CLS": ("classifier", "pooler"),
    "TOKEN_CLS": ("classifier",),
    "MASKED_LM": ("cls", "lm_head"),
}

# Keys (whole, as regular expressions) that a checkpoint may hold though a task does not use them:
# buffers which older versions saved, the pooler, and the heads of other tasks.
_BUFFERS = (r"embeddings\.(position|token_type)_ids", r"pooler\.dense\.(weight|bias)")
_CLASSIFIER = r"classifier\.((dense|out_proj)\.)?(weight|bias)"
_LANGUAGE = (r"cls\.predictions\..*", r"lm_head\..*")
_OTHERS = (r"cls\.seq_relationship\..*", r"qa_outputs\..*")
HARMLESS_KEYS = {
    None: (*_BUFFERS, _CLASSIFIER, *_LANGUAGE, *_OTHERS),
    "SEQ_CLS": (*_BUFFERS, _CLASSIFIER, *_LANGUAGE, *_OTHERS),
    "TOKEN_CLS": (*_BUFFERS, _CLASSIFIER, *_LANGUAGE, *_OTHERS),
    "MASKED_LM": (
        *_BUFFERS,
        _CLASSIFIER,
        *_OTHERS,
        r"(cls\.predictions|lm_head)\.(decoder\.)?bias",
    ),
}

# How safetensors names the types of numbers that weights can be read from.
FLOATING_TYPES = ("F64", "F32", "F16", "BF16")

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# An id on the hub: a name, or an owner and a name; paths begin with a dot or have more parts.
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
HUB_PATTERNS = ("*.json", "*.safetensors", "vocab.txt", "merges.txt", "*.model")
