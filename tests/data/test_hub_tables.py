"""Datasets through the shape of the `datasets` package; tests/parity has the real one."""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace

import pytest

from lntune_jax import LNTuningError
from lntune_jax.cli.options import Columns
from lntune_jax.data.documents import read_documents
from lntune_jax.data.hub_tables import choose_evaluation
from lntune_jax.data.sentences import read_sentences
from lntune_jax.data.tables import read_table

HUB = Path("owner/reviews")
ROWS = {
    "train": {"text": ["good", "bad", "so so"], "label": [1, 0, -1]},
    "validation": {"text": ["fine"], "label": [1]},
}


class Split:
    """What of a dataset is used."""

    column_names = ("text", "label")

    def __init__(self, name):
        self.features = {"text": object(), "label": SimpleNamespace(names=["neg", "pos"])}
        self._columns = ROWS[name]

    def __getitem__(self, name):
        return iter(self._columns[name])

    def __len__(self):
        return len(self._columns["text"])


@pytest.fixture
def hub(monkeypatch):
    """A module of the name that knows one dataset."""
    module = ModuleType("datasets")
    module.__spec__ = ModuleSpec("datasets", None)

    def names(path):
        if path != "owner/reviews":
            raise OSError("Couldn't reach the Hub")
        return list(ROWS)

    def load(path, split):
        return Split(split)

    module.get_dataset_split_names, module.load_dataset = names, load
    monkeypatch.setitem(sys.modules, "datasets", module)


@pytest.mark.usefixtures("hub")
def test_lists_of_labels_have_their_names(monkeypatch):
    """As the words of conll2003 have."""
    names = SimpleNamespace(feature=SimpleNamespace(names=["O", "B-PER"]))

    class Words(Split):
        column_names = ("tokens", "ner_tags")
        features = MappingProxyType({"tokens": object(), "ner_tags": names})

        def __init__(self):
            self._columns = {"tokens": [["Ada", "sings"]], "ner_tags": [[1, 0]]}

        def __len__(self):
            return 1

    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", lambda path, split: Words())
    assert read_sentences(HUB, split="train").labels == (("B-PER", "O"),)


@pytest.mark.usefixtures("hub")
def test_a_split_gives_texts_and_names_of_labels():
    with pytest.raises(LNTuningError, match="1 bad row: row 3: no label in column 'label'"):
        read_table(HUB, "text", "label", split="train")
    with pytest.warns(UserWarning, match="2 rows are left"):
        table = read_table(HUB, "text", "label", split="train", bad_rows="skip")
    assert (table.texts, table.labels) == (("good", "bad"), ("pos", "neg"))
    assert read_table(HUB, "text", split="validation").texts == ("fine",)
    assert read_documents(HUB, "auto", "text", split="train").values == ("good", "bad", "so so")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("path", "split", "fault"),
    [
        (
            "owner/reviews",
            "vaildation",
            r"no split 'vaildation'.*'train'.*did you mean 'validation'",
        ),
        ("owner/nothing", "train", r"neither a file here nor a dataset.*\(OSError\)"),
        ("owner/reviews", None, "is not a file"),
        ("owner/reviews.csv", "train", "is not a file"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(path, split, fault):
    with pytest.raises(LNTuningError, match=fault) as caught:
        read_table(Path(path), "text", split=split)
    assert "Couldn't" not in str(caught.value)


def test_the_package_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LNTuningError, match=r"pip install 'lntune-jax\[datasets\]'"):
        read_table(HUB, "text", split="train")


def test_where_the_rows_to_evaluate_on_are():
    assert choose_evaluation(Columns(), HUB) == (None, None, "--eval-data")
    assert choose_evaluation(Columns(eval_split="test"), HUB) == (HUB, "test", "--data")
    other = Columns(eval_data=Path("b.csv"))
    assert choose_evaluation(other, Path("a.csv")) == (Path("b.csv"), None, "--eval-data")
    for columns, fault in (
        (Columns(eval_split="test", eval_fraction=0.2), "--eval-split and --eval-fraction"),
        (Columns(eval_split="test", eval_data=Path("b")), "--eval-data and --eval-split"),
    ):
        with pytest.raises(LNTuningError, match=f"{fault} contradict"):
            choose_evaluation(columns, HUB)
    with pytest.raises(LNTuningError, match=r"--train-split goes with a dataset.*a\.csv is none"):
        choose_evaluation(Columns(train_split="train"), Path("a.csv"))
