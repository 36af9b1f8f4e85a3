"""The counts of the published models come out of abstract trees."""

import pytest

import lntune_jax as lnt
from tests.support.trees import llama, norm, shape

LLAMA_2_7B = {"hidden": 4096, "layers": 32, "intermediate": 11008, "vocabulary": 32000}
LLAMA_3_2_3B = {"hidden": 3072, "layers": 28, "intermediate": 8192, "vocabulary": 128256}
SMOLLM2 = {"hidden": 576, "layers": 30, "intermediate": 1536, "vocabulary": 49152}


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        (
            llama(**LLAMA_2_7B, key_values=4096),
            "trainable params: 266,240 || all params: 6,738,415,616 || trainable%: 0.0040",
        ),
        (
            llama(**LLAMA_3_2_3B, key_values=1024, tied=True),
            "trainable params: 175,104 || all params: 3,212,749,824 || trainable%: 0.0055",
        ),
        (
            llama(**SMOLLM2, key_values=192, tied=True),
            "trainable params: 35,136 || all params: 134,515,008 || trainable%: 0.0261",
        ),
    ],
    ids=["Llama-2-7B", "Llama-3.2-3B", "SmolLM2-135M"],
)
def test_counts_of_published_models(tree, line):
    for config in (lnt.LNTuningConfig(), lnt.LNTuningConfig(model_type="llama")):
        assert str(lnt.report_params(tree, config)) == line


def test_the_table_lists_what_trains():
    tree = {"ln": norm(), "fc": {"kernel": shape(8, 4)}, "steps": 3, "none": None}
    report = lnt.report_params(tree, lnt.LNTuningConfig(modules_to_save=["fc"]))
    assert (report.trainable, report.total, report.percent) == (48, 48, 100.0)
    assert report.table().splitlines() == [
        "leaf       shape  dtype    role",
        "-------------------------------",
        "fc.kernel  8 x 4  float32  saved",
        "ln.bias    8      float32  norm",
        "ln.scale   8      float32  norm",
        "trainable params: 48 || all params: 48 || trainable%: 100.0000",
    ]


def test_every_leaf_in_the_table_on_request():
    report = lnt.report_params({"ln": norm(), "fc": {"kernel": shape(8, 4)}}, lnt.LNTuningConfig())
    assert "fc.kernel" not in report.table()
    assert "fc.kernel  8 x 4  float32  frozen" in report.table(every_leaf=True)
