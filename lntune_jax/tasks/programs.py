"""The two compiled programs: the loss that training differentiates, and logits for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..data.batches import Rows, plan_in_order
from ..data.spread import place_batch, row_devices


def classification_loss(apply: Callable[..., Any]) -> Callable[..., Any]:
    """The mean cross entropy of a batch, over the rows whose weight is not zero.

    Args:
        apply: The model's pure function of params and token ids.

    Returns:
        `loss_fn(params, batch, rng=None)`; with an `rng`, dropout is on.
    """
    import jax.numpy as jnp
    import optax

    from ..training import WeightedLoss

    def loss_fn(params: Any, batch: Mapping[str, Any], rng: Any = None) -> Any:
        output = apply(
            params, batch["input_ids"], attention_mask=batch["attention_mask"], dropout_rng=rng
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(
            output.logits.astype(jnp.float32), batch["classes"]
        )
        return WeightedLoss((losses * batch["weights"]).sum(), batch["weights"].sum())

    return loss_fn


class Classifier:
    """Logits of many rows, through one compiled program a padded length."""

    def __init__(self, apply: Callable[..., Any], mesh: Any = None):
        """Wrap a model's pure function of params and token ids, for one device or a mesh."""
        import jax
        import jax.numpy as jnp

        import lntune_jax as lnt

        from ..training.xla_cpu import compiler_options

        self.compilations = 0

        def logits_of(trainable: Any, frozen: Any, input_ids: Any, attention_mask: Any) -> Any:
            self.compilations += 1  # Runs when JAX traces, which is once a shape.
            params = lnt.merge_params(trainable, frozen)
            return apply(params, input_ids, attention_mask=attention_mask).logits.astype(
                jnp.float32
            )

        # Every process reads all logits, to come to the same figures.
        whole = None if mesh is None else jax.sharding.NamedSharding(mesh, jax.P())
        self._mesh = mesh
        self._logits_of = jax.jit(
            logits_of,
            compiler_options=compiler_options(),
            out_shardings=whole,
        )

    def logits(
        self,
        trainable: Any,
        frozen: Any,
        rows: Rows,
        batch_size: int,
        buckets: Sequence[int],
        padding: int,
        advance: Callable[[int, int], None] = lambda done, total: None,
    ) -> np.ndarray:
        """Logits in the rows' order.

        Args:
            trainable: Flat dict of the trained leaves.
            frozen: The rest of the model.
            rows: The rows.
            batch_size: Rows a batch, at most.
            buckets: Padded lengths.
            padding: Token id of padding.
            advance: Called with the batches done and their total.

        Returns:
            float32 array of shape (rows, classes).
        """
        # A few rows need no full batch of repeated ones.
        batch_size = min(batch_size, len(rows.tokens))
        batch_size += -batch_size % row_devices(self._mesh)
        plan = plan_in_order(rows.lengths, batch_size, buckets)
        pending = []
        for done, planned in enumerate(plan, start=1):
            batch = place_batch(planned, rows, batch_size, padding, self._mesh)
            pending.append(
                self._logits_of(trainable, frozen, batch["input_ids"], batch["attention_mask"])
            )
            advance(done, len(plan))
        first = np.asarray(pending[0])
        logits = np.zeros((len(rows.tokens), first.shape[1]), np.float32)
        for planned, values in zip(plan, pending, strict=True):
            logits[planned.rows] = np.asarray(values)[: len(planned.rows)]
        return logits
