"""The words by which a normalisation module, and its leaves, are known. Data only.

Collected from Flax Linen and NNX, Equinox, Keras, Haiku, PyTorch, transformers, Tunix, MaxText,
EasyDeL and google-deepmind gemma. Names are compared in lower case, split into words at
underscores, digits and capitals: `RMSNorm_0` is rms, norm, 0.
"""

SCALE_NAMES = frozenset({"scale", "weight", "gamma", "w", "kernel"})
BIAS_NAMES = frozenset({"bias", "beta", "offset", "b"})

# Leaf names that belong to a norm only where they have one axis: EasyLM's and EasyDeL's norms
# hold a `kernel`, and so does every dense layer.
ONE_AXIS_NAMES = frozenset({"kernel"})

# Words that end in "norm" count too: qnorm, prelayernorm, CLIP's layrnorm (sic).
NORM_WORDS = frozenset({"norm", "norms", "ln", "lns", "lnf"})

# `normalization` alone is often a BatchNorm (RegNet, ResNet); it counts after these words.
NORMALIZATION_WORDS = frozenset({"normalization", "normalisation"})
BEFORE_NORMALIZATION = frozenset({"layer", "rms"})

# Norms over groups of channels: not LayerNorm, tuned only where a pattern names them.
GROUP_WORDS = frozenset({"group", "groupnorm", "instance", "instancenorm", "gn"})

# Not norms of this kind at all.
OTHER_WORDS = frozenset(
    {"batch", "batchnorm", "bn", "sync", "syncbatchnorm", "weight", "weightnorm", "spectral"}
    | {"spectralnorm", "local", "response"}
)

# After the norm word, these say that the module is something else: norm_proj, norm_head.
OTHER_NOUNS = frozenset(
    {"proj", "projection", "projector", "head", "dense", "linear", "fc", "conv", "gate", "router"}
    | {"embed", "embedding", "embeddings", "modulation", "adapter", "lora", "loss"}
)

# Words that say nothing about a module: an index in a Sequential, Linen's `layers_3`.
EMPTY_WORDS = frozenset({"layer", "layers", "module", "modules", "block", "blocks", "sequential"})

# Running statistics: they make their module a BatchNorm and are never trained.
STATISTICS = frozenset(
    {"running_mean", "running_var", "moving_mean", "moving_variance", "num_batches_tracked"}
)
AMBIGUOUS_STATISTICS = frozenset({"mean", "var"})  # statistics where a module holds both
