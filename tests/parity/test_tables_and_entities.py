"""The packages that a table of the hub and a label for each word are measured with."""

import random

import datasets
import pytest
from seqeval import metrics

from lntune_jax import LNTuningError
from lntune_jax.data.tables import read_table
from lntune_jax.tasks.entities import score_entities

ROWS = {
    "train": {"text": ["good", "bad", "so so"], "label": [1, 0, -1]},
    "validation": {"text": ["fine"], "label": [1]},
}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.filterwarnings("default")  # seqeval warns of tags that are no chunks'.
def test_entities_as_seqeval_counts_them(seed):
    draw = random.Random(seed)
    tags = ["O", "B-A", "I-A", "B-B", "I-B", "E-A", "S-B"]
    true, predicted = ([draw.choices(tags, k=9) for _ in range(200)] for _ in range(2))
    found = score_entities(true, predicted)[0]
    assert found.f1 == pytest.approx(metrics.f1_score(true, predicted))
    assert found.precision == pytest.approx(metrics.precision_score(true, predicted))
    assert found.recall == pytest.approx(metrics.recall_score(true, predicted))


def test_datasets_saved_to_disk(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    splits = {
        name: datasets.Dataset.from_dict(rows, features=features) for name, rows in ROWS.items()
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "several"))
    splits["validation"].save_to_disk(str(tmp_path / "one"))
    with pytest.warns(UserWarning, match="row 3: no label"):
        table = read_table(tmp_path / "several", "text", "label", split="train", bad_rows="skip")
    assert (table.texts, table.labels) == (("good", "bad"), ("pos", "neg"))
    one = read_table(tmp_path / "one", "text", "label", split="train")
    assert (one.texts, one.labels) == (("fine",), ("pos",))
    with pytest.raises(LNTuningError, match="no split 'test'; it has 'train', 'validation'"):
        read_table(tmp_path / "several", "text", split="test")
