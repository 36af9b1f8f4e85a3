"""Losses and likeliest classes of the pieces of words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..data.batches import PlannedBatch
from ..data.packing import LanguageRows
from ..data.pieces import place_pieces
from ..data.tokens import IGNORED
from .programs import Found, Program


def label_pieces(
    apply: Callable[..., Any], params: Any, batch: Mapping[str, Any], rng: Any = None
) -> tuple[Any, Any, Any]:
    """The sum of the losses of a batch, how many pieces have one, and the logits.

    Args:
        apply: The model's pure function of params and token ids.
        params: The model's tree.
        batch: From `place_pieces`.
        rng: With it, dropout is on.
    """
    import jax.numpy as jnp
    import optax

    output = apply(
        params, batch["input_ids"], attention_mask=batch["attention_mask"], dropout_rng=rng
    )
    logits, labels = output.logits.astype(jnp.float32), batch["labels"]
    counts = labels != IGNORED
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counts, labels, 0))
    return jnp.where(counts, losses, 0.0).sum(), counts.sum().astype(jnp.float32), logits


class Labeller(Program):
    """The loss and the likeliest classes of many rows."""

    def __init__(self, apply: Callable[..., Any], mesh: Any = None):
        """Wrap a model's pure function of params and token ids, for one device or a mesh."""

        def label(params: Any, batch: Mapping[str, Any]) -> Any:
            total, _, logits = label_pieces(apply, params, batch)
            return total, logits.argmax(axis=-1)

        super().__init__(label, mesh)

    def place(self, planned: PlannedBatch, rows: LanguageRows, size: int, padding: int) -> Any:
        """Token ids, their mask and labels."""
        return place_pieces(planned, rows, size, padding, self.mesh)

    def join(self, found: Found, rows: LanguageRows) -> tuple[float, list[np.ndarray]]:
        """The mean loss, and each row's classes of labelled pieces."""
        total, classes_of = 0.0, {}
        for planned, (loss, classes) in found:
            total += float(loss)
            for number, own in zip(planned.rows.tolist(), np.asarray(classes), strict=False):
                labels = rows.labels[number]
                classes_of[number] = own[: len(labels)][labels != IGNORED]
        return total / max(rows.targets, 1), [classes_of[number] for number in sorted(classes_of)]
