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
its products. A look-up costs nothing. A head that is trained (`modules_to_save`) costs 6N. A
classifier that reads the first token needs the last layer's keys and values of all tokens, and
the rest of that layer (five sixths of its weights, and all but one query) for this one.
"""

import math
from typing import NamedTuple

import jax

from lntune_jax.models.loss import even_chunks


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
    width, layers = model.settings.hidden_size, model.settings.num_hidden_layers
    for path, leaf in jax.tree_util.tree_flatten_with_path(model.params)[0]:
        names = [key.key for key in path]
        if names[-1] != "kernel" or names[0] == "lm_head":
            continue
        one = sees_one_token(names, layers - 1) and model.task == "SEQ_CLS"
        seen = rows if one else rows * length
        own = 2 * seen * math.prod(leaf.shape)
        forward += own
        step += own * (3 if names[0] in saved else 2)
    heads = model.settings.num_attention_heads
    size = getattr(model.settings, "head_dim", width // heads)
    each = 4 * rows * length * heads * size  # of one query to all keys, in each row
    alone = each if model.task == "SEQ_CLS" else 0
    attention = each * length * (layers - bool(alone)) + alone
    forward += attention
    # For a single query, the gradients of keys and values are outer products: no matmuls.
    step += 3 * attention - alone
    if model.task == "CAUSAL_LM":
        # The last token of a row predicts nothing; a few entries are in two chunks.
        chunks, entries = even_chunks(model.settings.vocab_size, chunk)
        head = 2 * rows * (length - 1) * width * chunks * entries
    return Limit(forward + head, step + 2 * head, attention, head)


def sees_one_token(names: list[str], last: int) -> bool:
    """Whether a classifier's kernel is read for the first token of each row alone."""
    if names[0] == "classifier" or "pooler" in names:
        return True
    return names[2:4] == ["layer", str(last)] and names[-2] not in ("key", "value")
