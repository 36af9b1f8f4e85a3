"""Modules that PEFT copied though they are no norms, and weights that are tied."""

import copy

import numpy as np
import pytest
import torch

import lntune_jax as lnt
from lntune_jax.errors import AdapterError, CopiedModuleWarning
from lntune_jax.integrations.torchax import from_torch
from tests.support.parity.architectures import MODELS
from tests.support.parity.exchange import (
    build,
    check_export,
    check_import,
    check_logits,
    load_with_peft,
    move,
    move_leaves,
    run_torch,
    save,
    wrap,
)
from tests.support.parity.small_models import make, make_batch
from tests.support.parity.training import make_module, make_ours

# What PEFT says of targets that are embeddings.
EMBEDDINGS = ("Setting `save_embedding_layers` to `True`",)

COPIES = {
    "a block": ("llama", ["norm", "mlp"]),
    "an embedding": ("llama", ["norm", "embed_tokens"]),
    "a head": ("llama", ["norm", "lm_head"]),
    "a Conv1D": ("gpt2", ["ln_f", "c_proj"]),
    "attention": ("bart", ["final_layer_norm", "encoder_attn"]),
    "a block with norms in it": ("bert", ["bert.encoder.layer.1.output", "embeddings.LayerNorm"]),
    "no norm at all": ("gpt2", ["mlp"]),
}


@pytest.mark.parametrize("case", COPIES)
def test_copies_are_imported_with_a_warning(case, tmp_path):
    name, targets = COPIES[case]
    wrapped = move(wrap(make_module(name), target_modules=targets))
    directory = save(wrapped, tmp_path, *EMBEDDINGS)
    batch = make_batch(name, seed=99)
    with pytest.warns(CopiedModuleWarning, match="imported whole, as saved modules"):
        check_import(wrapped, directory, make_ours(name).model, batch)


@pytest.mark.parametrize("case", [case for case in COPIES if case != "no norm at all"])
def test_copies_go_back_as_saved_modules(case, tmp_path):
    name, targets = COPIES[case]
    wrapped = move(wrap(make_module(name), target_modules=targets))
    save(wrapped, tmp_path / "theirs", *EMBEDDINGS)
    params, batch = make_ours(name).model.params, make_batch(name, seed=99)
    with pytest.warns(CopiedModuleWarning):
        adapter = lnt.load_peft(tmp_path / "theirs", params)
    ours = lnt.export_peft(tmp_path / "ours", adapter.trainable, adapter.config, base=params)
    loaded = load_with_peft(make_module(name), ours)
    np.testing.assert_allclose(
        run_torch(loaded, batch), run_torch(wrapped, batch), rtol=0, atol=1e-5
    )


def make_pictures():
    """A picture of four patches, whose tokens stand first, and text."""
    random = np.random.default_rng(0)
    ids = random.integers(3, 31, (2, 10))
    ids[:, :4] = 31
    return {"input_ids": ids, "pixel_values": random.normal(size=(2, 3, 8, 8)).astype(np.float32)}


def make_llava():
    return build(*MODELS["llava"])


def run_filled(module, params, batch):
    """PyTorch's logits with our parameters: torchax lacks an operation of LLaVA's."""
    filled = copy.deepcopy(module)
    filled.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in params.items()})
    return run_torch(filled, batch)


def test_the_default_adapter_of_llava_gives_its_logits_here(tmp_path):
    module, batch = make_llava(), make_pictures()
    wrapped = move(wrap(module, task_type="CAUSAL_LM"))
    directory = save(wrapped, tmp_path, *EMBEDDINGS)
    with pytest.warns(CopiedModuleWarning, match="multi_modal_projector"):
        params = lnt.import_peft(directory, from_torch(module).params)
    found, base = run_filled(module, params, batch), run_torch(module, batch)
    check_logits(found, run_torch(wrapped, batch), base)


def test_peft_gives_the_logits_of_our_llava(tmp_path):
    module, batch = make_llava(), make_pictures()
    model, config = from_torch(module), lnt.LNTuningConfig(model_type="llava")
    halves = lnt.partition_params(model.params, config, norms=model.norms)
    moved = move_leaves(halves.trainable)
    directory = lnt.export_peft(tmp_path / "adapter", moved, config)
    expected = run_filled(module, lnt.merge_params(moved, halves.frozen), batch)
    found = run_torch(load_with_peft(module, directory), batch)
    check_logits(found, expected, run_torch(module, batch))


def test_tied_weights_stay_tied(tmp_path):
    module = make("llama", tie_word_embeddings=True)
    model, batch = from_torch(module), make_batch("llama", seed=99)
    assert "lm_head.weight" not in model.params
    wrapped = move(wrap(module, task_type="CAUSAL_LM"))
    params = check_import(wrapped, save(wrapped, tmp_path / "theirs"), model, batch)
    config = lnt.LNTuningConfig(model_type="llama")
    moved = {k: params[k] for k in lnt.partition_params(params, config).trainable}
    directory = lnt.export_peft(tmp_path / "ours", moved, config)
    check_export(module, directory, model, params, batch)


def test_an_adapter_that_unties_a_head_is_refused(tmp_path):
    module = make("llama", tie_word_embeddings=True)
    usual = ("Model has `tie_word_embeddings=True`",)
    wrapped = wrap(module, *usual, target_modules=["norm"], modules_to_save=["lm_head"])
    directory = save(move(wrapped), tmp_path, *usual)
    with pytest.raises(AdapterError, match=r"lm_head\.weight"):
        lnt.import_peft(directory, from_torch(module).params)


def test_an_adapter_of_peft_for_another_model_is_refused(tmp_path):
    directory = save(wrap(make_module("llama")), tmp_path)
    model = make_ours("gpt2").model
    with pytest.raises(AdapterError, match="was trained on another model"):
        lnt.import_peft(directory, model.params)
