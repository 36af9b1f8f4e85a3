"""Every error and warning that a user of lntune_jax can cause.

One base class to catch them all; each subclass says which part of the work refused. Messages
name the path concerned, what was expected, what was found and which argument to change.

A message is the parts in `args`: `str` writes the arguments in it as Python does, `say` otherwise.
"""

from .messages import Spelling, write_message


class _Message(BaseException):
    """What errors and warnings share."""

    def __str__(self) -> str:
        return write_message(self.args)

    def say(self, spell: Spelling) -> str:
        """The message with its arguments spelled otherwise, as the command line's flags."""
        return write_message(self.args, spell)


class LNTuningError(_Message, Exception):
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
    """A field of `LNTuningConfig`, or of an `adapter_config.json`, cannot be used.

    Example:
        >>> import lntune_jax as lnt
        >>> try:
        ...     lnt.LNTuningConfig(peft_type="LORA")
        ... except lnt.errors.ConfigError as error:
        ...     print(error)
        peft_type must be 'LN_TUNING', not 'LORA': this is a config of another kind of adapter
    """


class PatternError(ConfigError):
    """A module pattern is not a valid regular expression, or cannot be matched in bounded time.

    Example:
        >>> import lntune_jax as lnt
        >>> try:
        ...     lnt.LNTuningConfig(target_modules="ln_(1")
        ... except lnt.errors.PatternError as error:
        ...     print("at position 3" in str(error))
        True
    """


class SelectionError(LNTuningError, ValueError):
    """The patterns of a config select nothing, or something that is no norm, in this tree.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> try:
        ...     lnt.partition_params({"fc": {"kernel": jnp.ones((2, 2))}}, lnt.LNTuningConfig())
        ... except lnt.errors.SelectionError as error:
        ...     print(str(error).split(",")[0])
        nothing trains: no LayerNorm or RMSNorm leaf was found in this tree
    """


class TreeError(LNTuningError, ValueError):
    """A parameter tree cannot be used: two leaves share a path, or two halves do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"ln": {"scale": jnp.ones(2)}}
        >>> trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
        >>> try:
        ...     lnt.merge_params({}, frozen)
        ... except lnt.errors.TreeError as error:
        ...     print(str(error).split(":")[0])
        the leaves 'ln.scale' are in neither half
    """


class PlaceholderError(TreeError, AttributeError):
    """A placeholder of the frozen half was used as if it were the array that it stands for.

    Example:
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> _, frozen = lnt.partition_params({"ln": {"scale": jnp.ones(2)}}, lnt.LNTuningConfig())
        >>> try:
        ...     frozen["ln"]["scale"].reshape(1, 2)
        ... except lnt.errors.TreeError as error:
        ...     print(str(error).split(": ")[0])
        the leaf 'ln.scale' of the frozen half is a placeholder, not an array
    """


class CheckpointError(LNTuningError, ValueError):
    """A training checkpoint cannot be written or read, or does not fit the state.

    Example:
        >>> import tempfile
        >>> import lntune_jax as lnt
        >>> try:
        ...     lnt.training.open_checkpoints(tempfile.mkdtemp(), keep=0)
        ... except lnt.errors.CheckpointError as error:
        ...     print(error)
        keep must be at least 1, not 0: a run needs one to go on from
    """


class AdapterError(LNTuningError, ValueError):
    """An adapter directory cannot be written or read, or does not fit these parameters.

    Example:
        >>> import lntune_jax as lnt
        >>> try:
        ...     lnt.load_adapter("no-such-adapter")
        ... except lnt.errors.AdapterError as error:
        ...     print(str(error).startswith("there is no adapter directory"))
        True
    """


class AnotherProcessError(AdapterError, CheckpointError):
    """Another process of the run raised an error, so that this one stopped instead of waiting.

    Example:
        >>> import lntune_jax as lnt
        >>> issubclass(lnt.errors.AnotherProcessError, lnt.errors.AdapterError)
        True
    """


class ModelError(LNTuningError, ValueError):
    """A model directory or its config cannot be honoured exactly.

    Example:
        >>> import lntune_jax as lnt
        >>> try:
        ...     lnt.models.from_pretrained("./no-such-directory")
        ... except lnt.errors.ModelError as error:
        ...     print(error)
        './no-such-directory' is neither a directory nor an id on the hub
    """


class DataError(LNTuningError, ValueError):
    """A data file lacks a column, is empty, or holds a label that is not known.

    Raised by the command line, which prints it as one line and exits with 2.

    Example:
        >>> import lntune_jax as lnt
        >>> issubclass(lnt.errors.DataError, lnt.LNTuningError)
        True
    """


class ShardingError(LNTuningError, ValueError):
    """A rule does not say how a leaf lies on a mesh.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> mesh = jax.sharding.AbstractMesh((2,), ("fsdp",))
        >>> try:
        ...     lnt.make_specs({"bias": jnp.ones(4)}, mesh, lambda path, leaf: jax.P("fsdp", None))
        ... except lnt.errors.ShardingError as error:
        ...     print(str(error).split(": ")[1])
        a spec has at most one entry for each axis
    """


class LNTuningWarning(_Message, UserWarning):
    """Base class of the warnings of lntune_jax that have a class of their own.

    Example:
        >>> import lntune_jax as lnt
        >>> issubclass(lnt.errors.UnmatchedPatternWarning, lnt.errors.LNTuningWarning)
        True
    """


class ShardingWarning(LNTuningWarning):
    """An axis of a leaf was to be divided over a mesh and is whole, since it does not divide.

    Example:
        >>> import warnings
        >>> import jax, jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> mesh = jax.sharding.AbstractMesh((4,), ("fsdp",))
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     specs = lnt.make_specs({"kernel": jnp.ones((6, 2))}, mesh)
        >>> tuple(specs["kernel"]), caught[0].category.__name__
        ((), 'ShardingWarning')
    """


class UnmatchedPatternWarning(LNTuningWarning):
    """A pattern of the config matched nothing in the tree, so it had no effect.

    Example:
        >>> import warnings
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> config = lnt.LNTuningConfig(exclude_modules=["ln_2"])
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     _ = lnt.partition_params({"ln_1": {"scale": jnp.ones(2)}}, config)
        >>> caught[0].category.__name__
        'UnmatchedPatternWarning'
    """


class TraceWarning(LNTuningWarning):
    """A trace could not say of every parameter whether it is a norm's: see `discover_norms`.

    A kernel that cannot be looked into takes it, it is a norm's in one place only, or steps between
    a division by a root and the parameter hide whether it is one's.

    Example:
        >>> import lntune_jax as lnt
        >>> issubclass(lnt.errors.TraceWarning, UserWarning)
        True
    """


class ZeroGradientWarning(LNTuningWarning):
    """The gradient of every trainable leaf was exactly zero in a step of `make_train_step`.

    The loss does not depend on the trainable leaves: activations quantised without
    straight-through gradients, or a forward pass that reads another tree.

    Example:
        >>> import warnings
        >>> import jax.numpy as jnp, optax
        >>> import lntune_jax as lnt
        >>> params = {"ln": {"scale": jnp.ones(2)}}
        >>> trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
        >>> step = lnt.make_train_step(lambda params: jnp.zeros(()), optax.sgd(0.1))
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     _ = step(lnt.TrainState.create(trainable, optax.sgd(0.1)), frozen)
        >>> caught[0].category.__name__
        'ZeroGradientWarning'
    """


class FreshWeightsWarning(LNTuningWarning):
    """Weights outside the classifier that the checkpoint does not hold were drawn at random.

    Given by `lntune_jax.models.from_pretrained`; the paths are in the model's `fresh`.

    Example:
        >>> import lntune_jax as lnt
        >>> issubclass(lnt.errors.FreshWeightsWarning, UserWarning)
        True
    """


class UnreadWeightsWarning(LNTuningWarning):
    """A checkpoint holds tensors of modules that the model does not have, and they are not read.

    Given by `lntune_jax.models.from_pretrained`; the message lists their keys.

    Example:
        >>> import lntune_jax as lnt
        >>> issubclass(lnt.errors.UnreadWeightsWarning, UserWarning)
        True
    """


class CopiedModuleWarning(LNTuningWarning):
    """A PEFT adapter copied modules that are no norms; they are imported as saved modules.

    PEFT's LN tuning copies whatever module a target matches, here only norms are targets.

    Example:
        >>> import lntune_jax as lnt
        >>> issubclass(lnt.errors.CopiedModuleWarning, UserWarning)
        True
    """


class ArgumentError(LNTuningError, ValueError):
    """An argument of a function is of the wrong type or out of range.

    Example:
        >>> import lntune_jax as lnt
        >>> try:
        ...     lnt.adamw(lnt.LNTuningConfig(), 1e-3, clip_norm=0)
        ... except lnt.errors.ArgumentError as error:
        ...     print(error)
        clip_norm must be a number that is more than 0, not 0
    """


class UncertainNormWarning(LNTuningWarning):
    """A module looks like a LayerNorm or RMSNorm by its shapes, and its name does not say so.

    Example:
        >>> import warnings
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> norm = {"scale": jnp.ones(4), "bias": jnp.ones(4)}
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     _ = lnt.select({"ln": norm, "layers_1": norm}, lnt.LNTuningConfig())
        >>> caught[0].category.__name__
        'UncertainNormWarning'
    """
