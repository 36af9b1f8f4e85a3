"""The counts of the published models come out of abstract trees."""

import pytest

import lntune_jax as lnt
from lntune_jax.selection.report import LeafReport, ParamReport, fold_layers
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


def test_layers_are_folded_into_one_line():
    report = lnt.report_params(llama(**LLAMA_2_7B, key_values=4096), lnt.LNTuningConfig())
    assert report.table(fold=True).splitlines() == [
        "leaf                                                  shape      role",
        "---------------------------------------------------------------------",
        "model.layers.{0..31}.input_layernorm.weight           32 x 4096  norm",
        "model.layers.{0..31}.post_attention_layernorm.weight  32 x 4096  norm",
        "model.norm.weight                                     4096       norm",
        "trainable params: 266,240 || all params: 6,738,415,616 || trainable%: 0.0040",
    ]


def folded(*leaves):
    reports = [LeafReport(path, shape, dtype, role) for path, shape, dtype, role in leaves]
    return [(leaf.path, leaf.shape) for leaf in fold_layers(reports)]


def test_what_is_folded_and_what_stays_apart():
    def named(path, shape=(4,), dtype="float32", role="norm"):
        return path, shape, dtype, role

    assert folded() == []
    some = [named(f"h.{number}.ln.scale") for number in (0, 2, 5, 10, 11, 12)]
    assert folded(*some[::-1]) == [("h.{0,2,5,10..12}.ln.scale", (6, 4))]
    assert folded(named("h.1.s"), named("h.0.s")) == [("h.{0,1}.s", (2, 4))]
    assert folded(named("norm.scale"), named("h.3.s")) == [("norm.scale", (4,)), ("h.3.s", (4,))]
    # Each of these differs from the first in one thing.
    others = [
        named("h.1.s", shape=(8,)),
        named("h.2.s", dtype="bfloat16"),
        named("h.3.s", role="saved"),
        named("h.4.b"),
        named("g.5.s"),
        named("h.6"),
    ]
    assert len(folded(named("h.0.s"), *others)) == 7
    # Two places: blocks, and the norms in a block.
    blocks = [named(f"b.{block}.layer.{number}.s") for block in range(3) for number in range(2)]
    assert folded(*blocks) == [("b.{0..2}.layer.{0,1}.s", (3, 2, 4))]
    # The last block has a norm more.
    assert folded(*blocks, named("b.2.layer.2.s")) == [
        ("b.{0..2}.layer.{0,1}.s", (3, 2, 4)),
        ("b.2.layer.2.s", (4,)),
    ]


def test_a_dtype_is_shown_where_it_differs():
    leaves = [LeafReport(f"h.{n}.s", (4,), dtype, "norm") for n, dtype in enumerate("ab")]
    table = ParamReport(8, 8, 100.0, tuple(leaves)).table(fold=True)
    assert table.splitlines()[0].split() == ["leaf", "shape", "dtype", "role"]
