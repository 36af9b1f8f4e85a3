"""The fewest matmul FLOPs of a step that trains norms, derived from the model's shapes.

Forward, a kernel of N weights costs 2N for each token. On the way back the gradient of its input
costs as much again, and that of the kernel itself, 2N more, is not wanted: 4N of a step, 6N of
full fine-tuning. Attention has two products forward (scores, mixed values) and four on the way
back (both operands of each have a gradient), three times its forward. With A the share of
attention in the forward pass, a step is (2 - 2A + 3A) = 2 + A of it. One layer of width D has
12 D^2 weights, or nearly, and 4 L D FLOPs of attention for each token at length L, so that
A = L / (6 D + L): 2.03 is reached where L is at most 0.186 D (71 tokens for 384, 142 for 768);
a head over the vocabulary lets L grow.

The first layer is no exception: there is a norm in front of it, whose gradient goes through all
its products. A look-up costs nothing. A head that is trained (`modules_to_save`) costs 6N.
"""

import math
from typing import NamedTuple

import jax

from lntune_jax.models._vocabulary import even_chunks


class Limit(NamedTuple):
    """FLOPs of matmuls.

    Attributes:
        forward: of the forward pass.
        step: of the least step.
        attention: of the forward pass, what attention's two products take.
        head: of the forward pass, what a head over the vocabulary takes.
    """

    forward: int
    step: int
    attention: int
    head: int

    @property
    def ratio(self) -> float:
        return self.step / self.forward


def find_limit(model, rows: int, length: int, saved: tuple[str, ...] = (), chunk: int = 8192):
    """The limit of a model from `lntune_jax.models.from_config` for a batch of `rows` x `length`.

    Args:
        model: with the task "SEQ_CLS" (of an encoder) or "CAUSAL_LM".
        rows: in the batch.
        length: tokens in a row.
        saved: modules at the top of the tree that train whole.
        chunk: of `causal_lm_loss`.
    """
    forward = step = head = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(model.params)[0]:
        names = [key.key for key in path]
        if names[-1] != "kernel" or names[0] == "lm_head":
            continue
        # A pooler and a classifier see one token of a row.
        seen = rows if names[0] == "classifier" or "pooler" in names else rows * length
        own = 2 * seen * math.prod(leaf.shape)
        forward += own
        step += own * (3 if names[0] in saved else 2)
    width, layers = model.settings.hidden_size, model.settings.num_hidden_layers
    heads = model.settings.num_attention_heads
    size = getattr(model.settings, "head_dim", width // heads)
    attention = 4 * layers * rows * length * length * heads * size
    forward += attention
    step += 3 * attention
    if model.task == "CAUSAL_LM":
        # The last token of a row predicts nothing; a few entries are in two chunks.
        chunks, entries = even_chunks(model.settings.vocab_size, chunk)
        head = 2 * rows * (length - 1) * width * chunks * entries
    return Limit(forward + head, step + 2 * head, attention, head)
