"""The code of docs/trainer.md runs as it is written, from top to bottom."""

import re

import jax

import lntune_jax as lnt
from tests.support.paths import ROOT
from tests.support.small import apply, make_batch, make_params

PAGE = ROOT / "docs" / "trainer.md"


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own, many, callback = re.findall(
        r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    names = {
        "params": make_params(),
        "apply_fn": apply,
        "batches": [make_batch(seed=1), make_batch(seed=2)],
        "held_out": make_batch(seed=3),
    }
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
        exec(own, names)
    assert names["result"].finished
    assert "classifier.kernel" in names["trainable"]
    assert set(names["result"].metrics) == {"loss", "accuracy"}
    assert set(lnt.load_adapter("run/adapter").trainable) == set(names["trainable"])
    with jax.numpy_dtype_promotion("standard"):
        exec(many, names)
    assert list(names["results"]) == ["slow", "fast"]
    exec(callback, names)
    capsys.readouterr()
    recipe = names["trainer"].Recipe(epochs=1)
    with jax.numpy_dtype_promotion("standard"):
        names["trainer"].fit(names["task"], recipe, callbacks=[names["Printer"]()])
    assert capsys.readouterr().out.startswith("2 {")
