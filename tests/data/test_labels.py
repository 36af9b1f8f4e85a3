import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lntune_jax import LNTuningError
from lntune_jax.data.labels import draw_rows, name_labels, number_labels, sort_labels, split_rows

PATH = Path("data.csv")


def test_numbers_are_sorted_by_value_and_words_by_letter():
    assert name_labels(["10", "9", "-1"] * 2, PATH) == ("-1", "9", "10")
    assert name_labels(["10", "9", "x"] * 2, PATH) == ("9", "10", "x")
    words = ["True", "False", "1", "1.0", "nan", "inf", "1_0", "-2e1"]
    expected = ("-2e1", "1", "1.0", "1_0", "False", "True", "inf", "nan")
    assert name_labels(words * 2, PATH) == expected


@given(st.permutations(["nan", "inf", "-inf", "NaN", "2", "10", "1.0", "1", "01", "b", "True"]))
def test_the_order_of_names_is_that_of_no_file_and_no_process(names):
    assert sort_labels(names) == sort_labels(sorted(names))


def test_the_order_of_names_depends_on_no_hash_seed():
    code = "from lntune_jax.data.labels import sort_labels as sort\n"
    code += "print(sort(['nan', 'inf', 'NaN', 'a', '2', '10', '1', '1.0', 'infinity']))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert found == {"('1', '1.0', '2', '10', 'NaN', 'a', 'inf', 'infinity', 'nan')\n"}


def test_a_class_of_one_row_is_named():
    with pytest.warns(UserWarning, match="a single row with the label 'rare'"):
        assert name_labels(["a", "b", "a", "b", "rare"], PATH) == ("a", "b", "rare")
    with pytest.warns(UserWarning, match="each of the labels '1', '2'"):
        name_labels(["a", "a", "2", "1"], PATH)


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
    with pytest.raises(LNTuningError, match=r"'x' in lines 4, 9; 'y' in line 6; it had 'a', 'b'"):
        number_labels(["a", "x", "y", "x"], ("a", "b"), PATH, (2, 4, 6, 9), "line")
    with pytest.raises(LNTuningError, match=r"'x' in rows 1, 2, .*, 20; and 15 more rows; it had"):
        number_labels(["x"] * 35, ("a", "b"), PATH)


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


def test_rows_are_drawn_by_the_seed_and_stay_in_order():
    rows = np.arange(5, 105)
    drawn = draw_rows(rows, 20, 3)
    assert drawn.tolist() == sorted(set(drawn.tolist()) & set(rows.tolist()))
    assert len(drawn) == 20
    np.testing.assert_array_equal(drawn, draw_rows(rows, 20, 3))
    assert drawn.tolist() != draw_rows(rows, 20, 4).tolist()
    assert draw_rows(rows, None, 3) is rows
