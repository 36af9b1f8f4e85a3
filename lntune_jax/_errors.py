"""Every error and warning that a user of lntune_jax can cause.

One base class to catch them all; each subclass says which part of the work refused. Messages
name the path concerned, what was expected, what was found and which argument to change.
"""


class LNTuningError(Exception):
    """Base class of every error raised by lntune_jax for something the caller can mend.

    Example:
        >>> import lntune_jax as lnt
        >>> try:
        ...     lnt.LNTuningConfig(param_dtype="int8")
        ... except lnt.LNTuningError as error:
        ...     print(type(error).__name__)
        ConfigError
    """


class ConfigError(LNTuningError, ValueError):
    """A field of `LNTuningConfig`, or of an `adapter_config.json`, cannot be used."""


class PatternError(ConfigError):
    """A module pattern is not a valid regular expression, or cannot be matched in bounded time."""


class SelectionError(LNTuningError, ValueError):
    """The patterns of a config select nothing, or something that is no norm, in this tree."""


class TreeError(LNTuningError, ValueError):
    """A parameter tree cannot be used: two leaves share a path, or two halves do not fit."""


class AdapterError(LNTuningError, ValueError):
    """An adapter directory cannot be written or read, or does not fit these parameters."""


class ModelError(LNTuningError, ValueError):
    """A model directory or its config cannot be honoured exactly."""


class DataError(LNTuningError, ValueError):
    """A data file lacks a column, is empty, or holds a label that is not known."""


class UnmatchedPatternWarning(UserWarning):
    """A pattern of the config matched nothing in the tree, so it had no effect."""


class ZeroGradientWarning(UserWarning):
    """The gradient of every trainable leaf was exactly zero in a step.

    The loss does not depend on the trainable leaves: activations quantised without
    straight-through gradients, or a forward pass that reads another tree.
    """


class FreshWeightsWarning(UserWarning):
    """Weights that the checkpoint does not hold were initialised at random."""
