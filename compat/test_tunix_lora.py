"""Norms and qwix's LoRA together in Tunix's trainer."""

import jax
import numpy as np
import qwix
from checks import check_equal, list_leaves
from flax import nnx
from test_tunix import CONFIG, read_checkpoint
from tunix_models import list_norms, make_model, measure_loss, run, train

import lntune_jax as lnt


def make_lora_model():
    provider = qwix.LoraProvider(module_path=".*(q_proj|v_proj|gate_proj)", rank=2, alpha=4.0)
    model = make_model("llama3")
    return qwix.apply_lora_to_model(model, provider, **model.get_model_input(), rngs=nnx.Rngs(1))


def list_changed(before, after):
    return {path for path in after if not np.array_equal(before.get(path), after[path])}


def test_norms_and_lora(record, tmp_path):
    plain, model = nnx.state(make_model("llama3"), nnx.Param), make_lora_model()
    lora = list_leaves(nnx.state(model, nnx.LoRAParam))
    norms = lnt.integrations.tunix.mark_trainable(model, CONFIG)
    assert {path.rpartition(".")[0] for path in norms} == list_norms(model)
    assert len(lora) == 12
    assert not set(lora) & set(norms)

    base = jax.tree.map(np.array, list_leaves(nnx.state(model, nnx.Param)))
    before = measure_loss(model)
    train(model, tmp_path / "run", 20)
    after = measure_loss(model)
    assert after < before
    trained = list_leaves(nnx.state(model, nnx.Param))
    assert list_changed(base, trained) == set(lora) | set(norms)
    assert read_checkpoint(tmp_path / "run", 20, "model_params") == set(lora) | set(norms)

    resumed = make_lora_model()
    lnt.integrations.tunix.mark_trainable(resumed, CONFIG)
    train(resumed, tmp_path / "run", 20)  # nothing left to do: it restores
    check_equal(run(resumed), run(model))

    # The norms alone are an adapter of the plain model.
    adapter = {path: trained[path] for path in norms}
    path = lnt.save_adapter(tmp_path / "adapter", adapter, CONFIG, base=plain)
    restored = lnt.restore_adapter(path, nnx.state(make_model("llama3"), nnx.Param))
    check_equal({p: list_leaves(restored)[p] for p in norms}, adapter)
    record(
        model="tunix, norms with LoRA",
        norms=len(norms),
        selected=len(norms) + len(lora),
        leaves=len(base),
        before=before,
        after=after,
        restored="equal",
    )
