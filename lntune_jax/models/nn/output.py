"""What makes logits of a language model's products: its logits and its loss both go through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    Products = Float[Array, "*axes vocabulary"]


@dataclass(frozen=True)
class LogitRule:
    """How the products of hidden states and output weights become logits.

    Whatever a family does to its products stands here, entry by entry and with its derivative:
    `causal_lm_loss` never holds the logits as a whole, and works on any part of the vocabulary.

    Attributes:
        axis: along which axis of the weights the vocabulary lies: 0 of a table of word
            embeddings, 1 of a kernel.
        cap: the bound that logits approach through tanh, or `None`.
    """

    axis: int
    cap: float | None = None

    def finish(self, products: Products) -> Products:
        """Give the logits."""
        return products if self.cap is None else jnp.tanh(products / self.cap) * self.cap

    def pull(self, slopes: Products, logits: Products) -> Products:
        """Give derivatives by the products from those by the logits."""
        return slopes if self.cap is None else slopes * (1 - jnp.square(logits / self.cap))
