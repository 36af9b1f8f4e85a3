"""From settings to a pure function of a plain tree of weights.

The modules are made once, without memory; `apply` puts the tree's arrays into them, and so is
the same function however the arrays change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx

from lntune_jax.errors import ModelError

from ._explicit import run_on_auto_axes
from ._heads import BareModel, MaskedLanguageModel, SequenceClassifier, TokenClassifier
from ._inputs import prepare_inputs
from ._quantized import read_kernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._inputs import Inputs
    from ._outputs import ModelOutput
    from ._settings import Settings

    Leaves = dict[tuple[str, ...], jax.ShapeDtypeStruct]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a model's modules.

    Attributes:
        settings: what the config says.
        task: one of `TASKS`.
        pooling: one of `POOLINGS`, for the sequence classifier.
        pooler: whether a bare model or a mean-pooling classifier has the pooler.
        dtype: the dtype of weights and activations.
    """

    settings: Settings
    task: str | None
    pooling: str | None
    pooler: bool
    dtype: str


def build(recipe: Recipe) -> tuple[Leaves, Callable[..., ModelOutput]]:
    """Give the leaves of the model's tree, by path, and its `apply`."""
    leaves, bind = skeleton(lambda: _module(recipe))

    def apply(
        params: Any,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        *,
        dropout_rng: Any = None,
    ) -> ModelOutput:
        """Run the model; see `PretrainedModel` for the arguments."""
        inputs = prepare_inputs(
            recipe.settings, input_ids, attention_mask, token_type_ids, position_ids
        )

        def run(params: Any, inputs: Inputs, key: Any) -> ModelOutput:
            return bind(params).outputs(inputs, key)

        rows = inputs.input_ids
        return run_on_auto_axes(run, params, inputs, dropout_rng, rows=rows)

    return leaves, apply


def skeleton(make: Callable[[], Any]) -> tuple[Leaves, Callable[[Any], Any]]:
    """Give a module's leaves, by path, and the function that puts a tree of arrays into it."""
    graph, state = nnx.split(nnx.eval_shape(make))
    # Indices of layers are integers here and strings in the params.
    places = dict(jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(state))[0])
    keys = {tuple(str(part.key) for part in path): path for path in places}
    leaves = {path: places[place] for path, place in keys.items()}

    def bind(params: Any) -> Any:
        tree: dict[Any, Any] = {}
        for path, expected in leaves.items():
            norm = _is_norm(path, leaves)
            _put(tree, [part.key for part in keys[path]], _leaf(params, path, expected, norm))
        return nnx.merge(graph, tree)

    return leaves, bind


def nest(leaves: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    """Give the nested dict of what is given by path."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        _put(tree, path, leaf)
    return tree


def _module(recipe: Recipe) -> Any:
    settings = recipe.settings
    options: dict[str, Any] = {"dtype": recipe.dtype, "rngs": nnx.Rngs(0)}
    if recipe.task == "SEQ_CLS":
        return SequenceClassifier(settings, pooling=recipe.pooling, pooler=recipe.pooler, **options)
    if recipe.task == "TOKEN_CLS":
        return TokenClassifier(settings, **options)
    if recipe.task == "MASKED_LM":
        return MaskedLanguageModel(settings, **options)
    return BareModel(settings, pooler=recipe.pooler, **options)


def _put(tree: dict[Any, Any], path: Any, leaf: Any) -> None:
    for segment in path[:-1]:
        tree = tree.setdefault(segment, {})
    tree[path[-1]] = leaf


def _is_norm(path: tuple[str, ...], leaves: Leaves) -> bool:
    return path[-1] in ("scale", "bias") and (*path[:-1], "scale") in leaves


def _leaf(params: Any, path: tuple[str, ...], expected: jax.ShapeDtypeStruct, is_norm: bool) -> Any:
    found = params
    for segment in path:
        try:
            found = found[segment]
        except (KeyError, TypeError, IndexError):
            raise ModelError(
                f"params has no leaf {'.'.join(path)} of the shape {expected.shape}; pass the "
                "whole tree (merge the trainable half with the frozen one first)"
            ) from None
    found = read_kernel(found)
    if getattr(found, "shape", None) != expected.shape:
        shape = getattr(found, "shape", f"none, as a {type(found).__name__}")
        has_rows = isinstance(shape, tuple) and shape[1:] == expected.shape
        if has_rows and is_norm:  # parameters of its own for each row of the batch
            # A loop over stacked layers takes its first axis.
            return found if len(expected.shape) == 1 else found.swapaxes(0, 1)
        if has_rows:
            raise ModelError(
                f"params leaf {'.'.join(path)} has a batch axis: {shape}, where norms alone may "
                "differ from row to row. Call lntune_jax.bank.apply_per_example, which computes a "
                "matmul for each row there, or leave saved modules out of the bank"
            )
        raise ModelError(
            f"params leaf {'.'.join(path)} has the shape {shape}; expected {expected.shape}"
        )
    return found
