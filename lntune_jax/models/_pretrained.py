"""A Hugging Face checkpoint as a plain tree of weights and a pure function, without PyTorch.

`from_pretrained` reads config and weights; `from_config` needs the config alone and gives the
tree's shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lntune_jax._errors import ModelError

from ._build import Recipe, build, nest
from ._directory import find_directory, read_config, with_labels
from ._files import open_weights
from ._loading import load_leaves
from ._matching import canonical_keys, match
from ._names import DTYPES, POOLINGS, TASKS
from ._settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._outputs import ModelOutput


@dataclass(frozen=True, eq=False)
class PretrainedModel:
    """A model's weights and the function that uses them.

    Attributes:
        params: a nested dict with string keys, indices of layers too. The paths are PyTorch's
            module paths, the leaves Flax's: `kernel` (inputs, outputs) and `bias`, `scale` and
            `bias`, `embedding`.
        config: the transformers config.
        apply: `apply(params, input_ids, attention_mask=None, token_type_ids=None,
            position_ids=None, *, dropout_rng=None) -> ModelOutput`: a pure function, which jit,
            grad and vmap can take. All inputs are integers of the shape (batch, length), the
            mask may hold booleans. Without `dropout_rng` nothing is dropped. Ids outside their
            table give NaN. Weights may be wider than the model's dtype: norms compute in
            float32 in any case, the others are cast.
        task: the task it was made for.
        fresh: the leaf paths, with dots, that were drawn at random.

    Example:
        >>> import jax
        >>> from transformers import BertConfig
        >>> from lntune_jax.models import from_config
        >>> tiny = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
        >>> model = from_config(tiny, task="MASKED_LM")
        >>> tokens = jax.ShapeDtypeStruct((2, 16), "int32")
        >>> jax.eval_shape(model.apply, model.params, tokens).logits.shape
        (2, 16, 30522)
    """

    params: dict[str, Any] = field(repr=False)
    config: Any = field(repr=False)
    apply: Callable[..., ModelOutput] = field(repr=False)
    task: str | None = None
    fresh: tuple[str, ...] = ()


def from_pretrained(
    name_or_directory: str | Path,
    task: str | None = None,
    *,
    dtype: Any = "float32",
    mesh: Any = None,
    num_labels: int | None = None,
    pooling: str | None = None,
    seed: int = 0,
    revision: str | None = None,
) -> PretrainedModel:
    """Load a BERT or RoBERTa checkpoint.

    The weights come from `model.safetensors`, or from several such files with an index. Only a
    head (and the pooler that BERT's sequence classifier reads) may be missing in them: it is
    drawn from the normal distribution with the config's `initializer_range`, biases zero. A
    bare model whose checkpoint has no pooler has none.

    Args:
        name_or_directory: a model directory, or an id on the Hugging Face hub.
        task: `None` for the bare encoder, "SEQ_CLS", "TOKEN_CLS" or "MASKED_LM".
        dtype: of weights and activations: "float32" or "bfloat16", whatever the file's is.
        mesh: a `jax.sharding.Mesh`, to put a copy of the weights on each of its devices.
        num_labels: outputs of a classifier, in place of the config's.
        pooling: what a sequence classifier reads: `None` for the architecture's own, "mean" for
            the mean of the last hidden states over the tokens that count.
        seed: for leaves that the checkpoint lacks.
        revision: a branch, tag or commit on the hub.

    Raises:
        ModelError: the name is neither a directory nor on the hub; a file is missing, damaged
            or a pickle; the config holds something that cannot be honoured exactly; the weights
            do not fit the model. The message names file, field or keys.

    Warns:
        FreshWeightsWarning: leaves outside `classifier` were drawn at random.

    Example:
        >>> from lntune_jax.models import from_pretrained
        >>> try:
        ...     from_pretrained("./no-such-directory", task="SEQ_CLS")
        ... except ValueError as error:
        ...     print(error)
        './no-such-directory' is neither a directory nor an id on the hub
    """
    number = _check_options(task, pooling, dtype)
    directory = find_directory(name_or_directory, revision)
    config = with_labels(read_config(directory), num_labels)
    settings = read_settings(config)
    prefix = settings.architecture.prefix
    with open_weights(directory) as weights:
        names = canonical_keys(weights, prefix)
        reads_pooler = task == "SEQ_CLS" and pooling is None
        pooler = reads_pooler or any(name.startswith("pooler.") for name in names)
        recipe = _recipe(settings, task, pooling, number, pooler=pooler)
        leaves, apply = build(recipe)
        plan = match(leaves, names, weights, task, prefix)
        spread = settings.initializer_range
        arrays = load_leaves(leaves, plan, weights, names, mesh=mesh, seed=seed, spread=spread)
    fresh = tuple(".".join(path) for path in plan.fresh)
    return PretrainedModel(nest(arrays), config, apply, task, fresh)


def from_config(
    directory_or_config: Any,
    task: str | None = None,
    *,
    dtype: Any = "float32",
    num_labels: int | None = None,
    pooling: str | None = None,
    revision: str | None = None,
) -> PretrainedModel:
    """Give the model of a config, with shapes in place of weights.

    Args:
        directory_or_config: a transformers config, a directory with a config.json, or an id on
            the Hugging Face hub; no weights are read or fetched.
        task: as in `from_pretrained`.
        dtype: as in `from_pretrained`.
        num_labels: as in `from_pretrained`.
        pooling: as in `from_pretrained`.
        revision: as in `from_pretrained`.

    Returns:
        A model whose `params` are `jax.ShapeDtypeStruct`; `jax.eval_shape(model.apply, ...)`
        works on them, and `model.apply` on a tree of arrays of those shapes.

    Raises:
        ModelError: as in `from_pretrained`, for all that the config says.

    Example:
        >>> from transformers import BertConfig
        >>> from lntune_jax.models import from_config
        >>> tiny = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
        >>> model = from_config(tiny, task="SEQ_CLS", num_labels=3)
        >>> model.params["classifier"]["kernel"]
        ShapeDtypeStruct(shape=(8, 3), dtype=float32)
        >>> sorted(model.params["bert"]["encoder"]["layer"]["0"]["output"]["LayerNorm"])
        ['bias', 'scale']
    """
    number = _check_options(task, pooling, dtype)
    config = directory_or_config
    if isinstance(config, str | Path):
        config = read_config(find_directory(config, revision, ("config.json",)))
    config = with_labels(config, num_labels)
    leaves, apply = build(_recipe(read_settings(config), task, pooling, number, pooler=True))
    return PretrainedModel(nest(leaves), config, apply, task)


def _check_options(task: str | None, pooling: str | None, dtype: Any) -> str:
    if task not in TASKS:
        raise ModelError(f"task is {task!r}; supported: {', '.join(map(repr, TASKS))}")
    if pooling not in POOLINGS:
        raise ModelError(f"pooling is {pooling!r}; supported: {', '.join(map(repr, POOLINGS))}")
    if pooling is not None and task != "SEQ_CLS":
        raise ModelError(f"pooling is {pooling!r}, which only the task 'SEQ_CLS' reads")
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise ModelError(f"dtype is {name!r}; supported: {', '.join(DTYPES)}")
    return name


def _recipe(
    settings: Any, task: str | None, pooling: str | None, dtype: str, *, pooler: bool
) -> Recipe:
    # RoBERTa's classifier never reads a pooler, and its PyTorch class has none.
    headless = task is None
    pooled = task == "SEQ_CLS" and settings.architecture.pooled_classifier
    return Recipe(settings, task, pooling, pooler and (headless or pooled), dtype)
