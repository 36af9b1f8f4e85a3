"""The words by which a normalisation module, and its leaves, are known. Data only.

Collected from Flax Linen and NNX, Equinox, Keras, Haiku, PyTorch, transformers, Tunix, MaxText,
EasyDeL and google-deepmind gemma. Names are compared in lower case, split into words at
underscores, digits and capitals: `RMSNorm_0` is rms, norm, 0.
"""

import re

SCALE_NAMES = frozenset({"scale", "weight", "gamma", "w", "kernel"})
BIAS_NAMES = frozenset({"bias", "beta", "offset", "b"})

# Leaf names that belong to a norm only where they have one axis: EasyLM's and EasyDeL's norms
# hold a `kernel`, and so does every dense layer.
ONE_AXIS_NAMES = frozenset({"kernel"})

# Words that end in "norm" count too: qnorm, prelayernorm, CLIP's layrnorm (sic).
NORM_WORDS = frozenset({"norm", "norms", "ln", "lns", "lnf", "gn", "rms"})

# What says which norm it is, in the norm word and the one before it; `norm` alone may be a
# BatchNorm or a GroupNorm.
EXPLICIT = re.compile(r"layr? ?norm|layer ?norm|\brms|rmsnorm|\bln")

# The names of the types themselves, as Linen gives them: never a BatchNorm's.
TYPE_NAMES = ("LayerNorm", "RMSNorm")

# With one of these words it is no BatchNorm: queries, keys and tokens have norms of their own.
TOKEN_WORDS = frozenset({"q", "k", "qk", "query", "key", "qnorm", "knorm", "token", "tokens"})

# What the first convolution of a transformer is called, after which comes no BatchNorm.
EMBEDDING_WORDS = ("embed", "patch")

# Names of a scale that no norm belongs to: LayerScale, a gain, and qwix's quantised `array`.
SCALE_WORDS = frozenset(
    {"scale", "scales", "scaling", "scaler", "layerscale", "ls", "gain", "array"}
)

# `normalization` alone is often a BatchNorm (RegNet, ResNet); it counts after these words.
NORMALIZATION_WORDS = frozenset({"normalization", "normalisation"})
BEFORE_NORMALIZATION = frozenset({"layer", "rms", "group", "instance", "final"})

# Norms over groups of channels: not LayerNorm, tuned only where a pattern names them. The first
# stand next to the norm word, the others are one.
GROUP_WORDS = frozenset({"group", "instance"})
GROUP_NORM_WORDS = frozenset({"groupnorm", "instancenorm", "gn"})

# Not norms of this kind at all: again next to the norm word, or in one with it.
OTHER_WORDS = frozenset({"batch", "weight", "spectral", "response"})
OTHER_NORM_WORDS = frozenset({"batchnorm", "syncbatchnorm", "weightnorm", "spectralnorm"})
BATCH_NORM_WORDS = frozenset({"bn", "bns"})  # no word for a norm, but known

# A lone scale of two axes may be stacked, or the matrix of a projection (norm_proj, norm_mlp). It
# is stacked only where nothing else than these, and digits, comes after the norm word.
AFTER_STACKED = frozenset(
    {"f", "final", "pre", "post", "before", "after", "attn", "attention", "self", "cross"}
    | {"ff", "ffn", "ffw", "feedforward", "q", "k", "query", "key", "first", "second"}
    | {"local", "global"}
)

# Words that say nothing about a module: an index in a Sequential, Linen's `layers_3`.
EMPTY_WORDS = frozenset(
    {"layer", "layers", "module", "modules", "block", "blocks", "sequential", "stage", "stages"}
)

# Running statistics: they make their module a BatchNorm and are never trained.
STATISTICS = frozenset(
    {"running_mean", "running_var", "moving_mean", "moving_variance", "num_batches_tracked"}
)
AMBIGUOUS_STATISTICS = frozenset({"mean", "var"})  # statistics where a module holds both
