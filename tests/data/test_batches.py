import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lntune_jax.data.batches import (
    PlannedBatch,
    Rows,
    assemble,
    choose_lengths,
    plan_epoch,
    plan_in_order,
)

row_lengths = st.lists(st.integers(1, 60), min_size=1, max_size=80).map(np.array)


def padded_tokens(lengths, buckets):
    return sum(min(bucket for bucket in buckets if bucket >= length) for length in lengths)


@given(row_lengths, st.integers(1, 4))
def test_chosen_lengths_waste_no_more_than_any_others(lengths, count):
    chosen = choose_lengths(lengths, count)
    assert len(chosen) <= count
    assert chosen == tuple(sorted(set(chosen)))
    assert all(length % 8 == 0 for length in chosen)
    longest = -(-int(lengths.max()) // 8) * 8
    assert chosen[-1] == longest
    others = itertools.combinations(range(8, longest, 8), min(count, longest // 8) - 1)
    least = min(padded_tokens(lengths, (*other, longest)) for other in others)
    assert padded_tokens(lengths, chosen) == least


def test_a_length_never_exceeds_what_the_model_reads():
    assert choose_lengths(np.array([3, 20, 27]), count=2, limit=27) == (8, 27)


@given(row_lengths, st.integers(1, 16), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_holds_every_row_once_in_few_shapes(lengths, batch_size, seed, epoch):
    buckets = choose_lengths(lengths, 3)
    plan = plan_epoch(seed, epoch, lengths, batch_size, buckets)
    rows = np.concatenate([batch.rows for batch in plan])
    assert sorted(rows) == list(range(len(lengths)))
    assert len(plan) == -(-len(lengths) // batch_size)
    assert {batch.length for batch in plan} <= set(buckets)
    assert sum(len(batch.rows) < batch_size for batch in plan) <= 1
    for batch in plan:
        assert lengths[batch.rows].max() <= batch.length
    again = plan_epoch(seed, epoch, lengths, batch_size, buckets)
    assert [batch.rows.tolist() for batch in plan] == [batch.rows.tolist() for batch in again]


def test_epochs_and_seeds_differ():
    lengths = np.full(64, 7)
    plans = [
        np.concatenate([batch.rows for batch in plan_epoch(seed, epoch, lengths, 8, (8,))]).tolist()
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert plans[0] != plans[1]
    assert plans[0] != plans[2]


@given(row_lengths, st.integers(1, 16))
def test_an_evaluation_holds_every_row_once(lengths, batch_size):
    plan = plan_in_order(lengths, batch_size, choose_lengths(lengths, 4))
    assert sorted(np.concatenate([batch.rows for batch in plan])) == list(range(len(lengths)))


def test_a_batch_is_padded_with_rows_of_weight_zero():
    rows = Rows((np.array([5, 6, 7]), np.array([8])), np.array([1, 0]))
    batch = assemble(PlannedBatch(np.array([0, 1]), 4), rows, batch_size=3, padding=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 9], [8, 9, 9, 9], [5, 6, 7, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 0]]
    assert batch["weights"].tolist() == [1, 1, 0]
    assert batch["classes"].tolist() == [1, 0, 1]
    assert {array.dtype for array in batch.values()} == {np.dtype("int32"), np.dtype("float32")}


@pytest.mark.parametrize("numbers", [[1], [1, 0]])
def test_rows_can_be_taken(numbers):
    rows = Rows((np.array([5]), np.array([6, 6])), np.array([1, 0]))
    taken = rows.take(np.array(numbers))
    assert taken.lengths.tolist() == [[1, 2][number] for number in numbers]
