"""What becomes of small steps on a bfloat16 base: PEFT's copies, our float32 masters.

A llama of random weights reads sequences in which each token says what the next one is; the runs
differ in the dtype of the base, in that of the trainable leaves, and in who trains.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import torch

import lntune_jax as lnt
from lntune_jax.integrations.torchax import from_torch
from tests.support.parity.exchange import wrap
from tests.support.parity.small_models import VOCABULARY, as_tensors, make
from tests.support.parity.training import get_values, run_peft
from tests.support.small import relax

STEPS, BATCH, LENGTH = 100, 8, 32
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "head_dim": 16}

# Name: who trains, the base's dtype, our param_dtype.
VARIANTS: dict[str, tuple[str, str, str | None]] = {
    "PEFT, float32": ("peft", "float32", None),
    "PEFT, bfloat16": ("peft", "bfloat16", None),
    "ours, float32": ("ours", "float32", "float32"),
    "ours, bfloat16 base, float32 masters": ("ours", "bfloat16", "float32"),
    "ours, bfloat16, param_dtype=None": ("ours", "bfloat16", None),
}


class Outcome(NamedTuple):
    """What a run did.

    Attributes:
        moved: percent of the trainable entries that are not what they were.
        seen: the same as the forward pass sees them, in the base's dtype.
        before: the loss on batches that are not trained on, at the start.
        after: the same at the end.
    """

    moved: float
    seen: float
    before: float
    after: float

    @property
    def fall(self) -> float:
        """By how much the loss fell."""
        return self.before - self.after


def make_task(seed: int, count: int) -> list[dict[str, np.ndarray]]:
    """Batches of sequences that go in steps of three through a few tokens."""
    random = np.random.default_rng(seed)
    starts = random.integers(0, VOCABULARY // 6, (count, BATCH, 1))
    ids = 3 + (starts + 3 * np.arange(LENGTH)) % (VOCABULARY // 6)
    return [{"input_ids": row, "attention_mask": np.ones_like(row), "labels": row} for row in ids]


def run_variant(name: str, learning_rate: float) -> Outcome:
    """Trains one variant for `STEPS` steps and looks at what changed."""
    side, dtype, param_dtype = VARIANTS[name]
    module = make("llama", **SIZES).to(getattr(torch, dtype))
    if side == "peft":
        return run_with_peft(module, learning_rate)
    return run_with_ours(module, param_dtype, learning_rate)


def run_with_peft(module: torch.nn.Module, learning_rate: float) -> Outcome:
    """PEFT's way: AdamW on copies in the base's dtype."""
    wrapped = wrap(module, task_type="CAUSAL_LM")
    before, values = evaluate(lambda batch: wrapped(**as_tensors(batch)).loss), get_values(wrapped)
    run_peft(wrapped, make_task(0, STEPS), STEPS, learning_rate, decay=0.0)
    after = evaluate(lambda batch: wrapped(**as_tensors(batch)).loss)
    moved = count_moved(values, get_values(wrapped))
    return Outcome(moved, moved, before, after)


def run_with_ours(
    module: torch.nn.Module, param_dtype: str | None, learning_rate: float
) -> Outcome:
    """Ours: AdamW on leaves of `param_dtype` over the same base."""
    model = from_torch(module)
    config = lnt.LNTuningConfig(model_type="llama", param_dtype=param_dtype)
    start, frozen = lnt.partition_params(model.params, config)
    tx = relax(optax.adamw(learning_rate, weight_decay=0.0))

    def loss_fn(params: Any, batch: Any) -> Any:
        return model.apply(params, **batch).loss

    step = lnt.make_train_step(loss_fn, tx, config, donate=False)
    evaluate_ours = jax.jit(lambda t, frozen, batch: loss_fn(lnt.merge_params(t, frozen), batch))
    state = lnt.TrainState.create(start, tx)
    before = evaluate(lambda batch: evaluate_ours(start, frozen, batch))
    for batch in make_task(0, STEPS):
        state, _ = step(state, frozen, batch)
    after = evaluate(lambda batch: evaluate_ours(state.trainable, frozen, batch))
    merged = lnt.merge_params(state.trainable, frozen)
    seen = count_moved({name: model.params[name] for name in start}, merged)
    return Outcome(count_moved(start, state.trainable), seen, before, after)


def evaluate(compute: Any) -> float:
    """The mean loss on other batches of the task."""
    with torch.no_grad():
        return float(np.mean([float(compute(batch)) for batch in make_task(1, 8)]))


def count_moved(before: dict[str, Any], after: dict[str, Any]) -> float:
    """Percent of the entries that changed."""
    changed = [np.asarray(after[name]) != np.asarray(value) for name, value in before.items()]
    return 100 * float(np.mean(np.concatenate(changed)))


def make_table(outcomes: dict[str, dict[str, Outcome]]) -> str:
    """Lines to print: one for each learning rate and variant."""
    lines = [f"{'learning rate, variant':47s} {'moved %':>8s} {'seen %':>7s}   loss"]
    for rate, rows in outcomes.items():
        for name, row in rows.items():
            lines.append(
                f"{rate:>8s}  {name:37s} {row.moved:8.1f} {row.seen:7.1f}   "
                f"{row.before:.4f} -> {row.after:.4f}"
            )
    return "\n".join(lines)
