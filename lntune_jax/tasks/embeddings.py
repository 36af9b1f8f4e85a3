"""Embeddings of texts: how hidden states become one vector, and how well vectors tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..data.batches import PlannedBatch, Rows
from ..data.examples import EncodedExamples
from ..data.spread import place_batch
from .programs import Found, Program
from .scores import correlate, rank

# What sentence-transformers multiplies cosines with before the softmax.
SCALE = 20.0
# Anchors that are compared with all candidates at once.
_ANCHORS_AT_ONCE = 512


def make_embed(apply: Callable[..., Any], pooling: str) -> Callable[..., Any]:
    """A function `embed(params, input_ids, attention_mask, rng=None)` to vectors of length 1.

    Args:
        apply: A bare model's pure function of params and token ids.
        pooling: `mean` or `cls`.
    """
    import jax
    import jax.numpy as jnp

    from ..models import mean_pool

    def embed(params: Any, input_ids: Any, attention_mask: Any, rng: Any = None) -> Any:
        output = apply(params, input_ids, attention_mask=attention_mask, dropout_rng=rng)
        hidden = output.last_hidden_state.astype(jnp.float32)
        vectors = hidden[:, 0] if pooling == "cls" else mean_pool(hidden, attention_mask)
        squares = jnp.square(vectors).sum(axis=-1, keepdims=True)
        return vectors * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))

    return embed


class Embedder(Program):
    """Embeddings of many texts."""

    def __init__(self, embed: Callable[..., Any], mesh: Any = None):
        """Wrap a function of `make_embed`, for one device or a mesh."""
        super().__init__(
            lambda params, batch: embed(params, batch["input_ids"], batch["attention_mask"]), mesh
        )

    def place(self, planned: PlannedBatch, rows: Rows, size: int, padding: int) -> Any:
        """Token ids and their mask."""
        batch = place_batch(planned, rows, size, padding, self.mesh)
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def join(self, found: Found, rows: Rows) -> np.ndarray:
        """Vectors of length 1 in the texts' order, float32 of shape (texts, width)."""
        vectors = np.zeros((len(rows.tokens), found[0][1].shape[1]), np.float32)
        for planned, values in found:
            vectors[planned.rows] = np.asarray(values)[: len(planned.rows)]
        return vectors


def list_texts(tokens: Sequence[np.ndarray]) -> Rows:
    """Tokens of texts as rows, which have no classes."""
    return Rows(tuple(tokens), np.zeros(len(tokens), np.int32))


def measure(rows: EncodedExamples, vectors: np.ndarray) -> dict[str, float]:
    """The figures of embeddings, computed in float64.

    Args:
        rows: The rows.
        vectors: Of each row's texts, shape (rows, texts, width), of length 1.

    Returns:
        `loss`, and what the rows' form allows. The loss of pairs and triplets is that of training
        with all rows in one batch.
    """
    vectors = vectors.astype(np.float64)
    first, second = vectors[:, 0], vectors[:, 1]
    cosines = (first * second).sum(axis=-1)
    if rows.form == "scored":
        return {
            "loss": float(np.square(cosines - rows.scores).mean()),
            "spearman": correlate(rank(cosines), rank(rows.scores)),
            "pearson": correlate(cosines, rows.scores),
        }
    # A text that is several rows' positive is right for each of them.
    known: dict[bytes, int] = {}
    texts = np.asarray([known.setdefault(row[1].tobytes(), len(known)) for row in rows.tokens])
    candidates = np.concatenate(list(vectors[:, 1:].swapaxes(0, 1)))
    loss, right, count = 0.0, 0, len(first)
    for start in range(0, count, _ANCHORS_AT_ONCE):
        own = np.arange(start, min(start + _ANCHORS_AT_ONCE, count))
        found = first[own] @ candidates.T
        logits = SCALE * found
        most = logits.max(axis=1)
        sums = np.log(np.exp(logits - most[:, None]).sum(axis=1)) + most
        loss += float((sums - SCALE * cosines[own]).sum())
        right += int((texts[found[:, :count].argmax(axis=1)] == texts[own]).sum())
    figures = {"loss": loss / count, "accuracy_at_1": right / count}
    if rows.form == "triplets":
        wrong = (first * vectors[:, 2]).sum(axis=-1)
        figures["triplet_accuracy"] = float((cosines > wrong).mean())
    return figures
