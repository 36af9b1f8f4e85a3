"""The README's loop runs as written, on a small model."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from small import loss_fn, make_batch, make_params

README = Path(__file__).parent.parent / "README.md"


def test_the_loop_of_the_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    base = make_params()
    names = {"params": base, "loss_fn": loss_fn}
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
        exec(block, names)
        step = names["step"]
        trainable, _, loss = step(
            names["trainable"], names["opt_state"], names["frozen"], make_batch()
        )
    assert "trainable params: 258 ||" in capsys.readouterr().out
    assert jnp.isfinite(loss)
    assert np.any(np.asarray(trainable["ln_f.scale"]) != 1)
    jax.tree.map(np.testing.assert_array_equal, names["params"], base)  # restored, untrained


def test_every_relative_link_leads_somewhere():
    for page in [README, *README.parent.glob("docs/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), (page.name, link)
