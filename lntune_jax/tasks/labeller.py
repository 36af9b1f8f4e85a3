"""Losses and likeliest classes of the pieces of words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..data.batches import plan_in_order
from ..data.packing import LanguageRows
from ..data.pieces import place_pieces
from ..data.spread import row_devices
from ..data.tokens import IGNORED


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


class Labeller:
    """The loss and the likeliest classes of many rows, one compiled program a padded length."""

    def __init__(self, apply: Callable[..., Any], mesh: Any = None):
        """Wrap a model's pure function of params and token ids, for one device or a mesh."""
        import jax

        import lntune_jax as lnt

        from ..training.xla_cpu import compiler_options

        self.compilations = 0

        def run(trainable: Any, frozen: Any, batch: Mapping[str, Any]) -> Any:
            self.compilations += 1  # Runs when JAX traces, which is once a shape.
            total, _, logits = label_pieces(apply, lnt.merge_params(trainable, frozen), batch)
            return total, logits.argmax(axis=-1)

        # Every process reads all classes, to come to the same figures.
        whole = None if mesh is None else jax.sharding.NamedSharding(mesh, jax.P())
        self._mesh = mesh
        self._run = jax.jit(run, compiler_options=compiler_options(), out_shardings=whole)

    def label(
        self,
        trainable: Any,
        frozen: Any,
        rows: LanguageRows,
        batch_size: int,
        buckets: Sequence[int],
        padding: int,
    ) -> tuple[float, list[np.ndarray]]:
        """The mean loss, and for each row the classes of its labelled pieces.

        Args:
            trainable: Flat dict of the trained leaves.
            frozen: The rest of the model.
            rows: The rows.
            batch_size: Rows a batch, at most.
            buckets: Padded lengths.
            padding: Token id of padding.
        """
        batch_size = min(batch_size, len(rows.tokens))
        batch_size += -batch_size % row_devices(self._mesh)
        plan = plan_in_order(rows.lengths, batch_size, buckets)
        pending = [
            self._run(trainable, frozen, place_pieces(each, rows, batch_size, padding, self._mesh))
            for each in plan
        ]
        total, found = 0.0, {}
        for planned, (loss, classes) in zip(plan, pending, strict=True):
            total += float(loss)
            for number, own in zip(planned.rows.tolist(), np.asarray(classes), strict=False):
                labels = rows.labels[number]
                found[number] = own[: len(labels)][labels != IGNORED]
        return total / max(rows.targets, 1), [found[number] for number in sorted(found)]
