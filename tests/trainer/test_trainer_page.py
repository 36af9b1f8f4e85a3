"""The code of docs/trainer.md runs as it is written, from top to bottom."""

import re

import lntune_jax as lnt
from tests.support.paths import ROOT
from tests.support.small import apply, make_batch, make_params
from tests.support.tiny_bert import (  # noqa: F401
    _strict_promotion,
    make_rows,
    model_directory,
    table,
)

PAGE = ROOT / "docs" / "trainer.md"


def test_the_page_runs_from_top_to_bottom(
    tmp_path,
    monkeypatch,
    capsys,
    model_directory,  # noqa: F811
    table,  # noqa: F811
):
    monkeypatch.chdir(tmp_path)
    own, whole, many, callback = re.findall(
        r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    names = {
        "params": make_params(),
        "apply_fn": apply,
        "batches": [make_batch(seed=1), make_batch(seed=2)],
        "held_out": make_batch(seed=3),
    }
    exec(own, names)
    assert names["result"].finished
    assert "classifier.kernel" in names["trainable"]
    assert set(names["result"].metrics) == {"loss", "accuracy"}
    assert set(lnt.load_adapter("run/adapter").trainable) == set(names["trainable"])
    exec(many, names)
    assert list(names["results"]) == ["slow", "fast"]
    exec(callback, names)
    capsys.readouterr()
    recipe = names["trainer"].Recipe(epochs=1)
    names["trainer"].fit(names["task"], recipe, callbacks=[names["Printer"]()])
    assert capsys.readouterr().out.startswith("2 {")

    (tmp_path / "all-MiniLM-L6-v2").symlink_to(model_directory)
    (tmp_path / "train.csv").symlink_to(table)
    exec(
        whole.replace("max_length=128", "max_length=32").replace('output="run"', 'output="b"'),
        names,
    )
    assert names["result"].finished
    assert lnt.load_adapter("b/adapter").task["labels"]
