from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lntune_jax import LNTuningError
from lntune_jax.data.labels import name_labels, number_labels, split_rows

PATH = Path("data.csv")


def test_numbers_are_sorted_by_value_and_words_by_letter():
    assert name_labels(["10", "9", "-1", "9"], PATH) == ("-1", "9", "10")
    assert name_labels(["10", "9", "x", "x"], PATH) == ("10", "9", "x")


@pytest.mark.parametrize(
    ("labels", "fragment"),
    [(["a", "a"], "two or more"), (["a", "b", "c"], "different labels")],
)
def test_a_column_that_holds_no_classes_is_refused(labels, fragment):
    with pytest.raises(LNTuningError, match=fragment):
        name_labels(labels, PATH)


def test_an_unknown_label_is_named_with_its_row():
    assert number_labels(["b", "a"], ("a", "b"), PATH).tolist() == [1, 0]
    with pytest.raises(LNTuningError, match=r"'Neg' in row 2.*'neg', 'pos' \(did you mean 'neg'\?"):
        number_labels(["pos", "Neg"], ("neg", "pos"), PATH)


@given(
    st.lists(st.integers(0, 3), min_size=4, max_size=60), st.floats(0.05, 0.9), st.integers(0, 9)
)
def test_a_split_is_stratified_and_shares_no_row(classes, fraction, seed):
    classes = np.asarray([0, 0, *classes])
    training, evaluation = split_rows(classes, fraction, seed)
    assert sorted([*training, *evaluation]) == list(range(len(classes)))
    for number in np.unique(classes):
        rows, held_out = (classes == number).sum(), (classes[evaluation] == number).sum()
        assert abs(held_out - fraction * rows) <= 1
        if rows >= 2:
            assert 1 <= held_out < rows
    again = split_rows(classes, fraction, seed)
    np.testing.assert_array_equal(evaluation, again[1])


def test_rows_that_cannot_be_split_ask_for_a_second_table():
    with pytest.raises(LNTuningError, match="--eval-data"):
        split_rows(np.array([0, 1]), 0.5, 0)
