"""Configs that PEFT reads otherwise than we do, exported so that it loads the same adapter."""

import peft
import pytest

import lntune_jax as lnt
from tests.support.parity.exchange import check_export, check_import, move, move_leaves, save, wrap
from tests.support.parity.small_models import make_batch
from tests.support.parity.training import clean, make_module, make_ours

# Model and our config. PEFT's own reading of each would be another one, or an error.
OWN = {
    "an expression": ("llama", {"target_modules": r".*\.1\..*layernorm"}),
    "an expression in a list": ("llama", {"target_modules": [r".*\.0\..*"]}),
    "a container, as an expression": ("llama", {"target_modules": ".*layers.*"}),
    "a container, in a list": ("llama", {"target_modules": ["layers"]}),
    "a decoder": ("bart", {"target_modules": ".*decoder.*"}),
    "all norms": ("llama", {}),
    "all norms of two towers": ("bart", {}),
    "the default of an architecture that PEFT has none for": ("bert", {"model_type": "bert"}),
    "PEFT's default": ("t5", {"model_type": "t5"}),
    "scales": ("bert", {"target_modules": r".*LayerNorm\.weight"}),
    "biases": ("gpt2", {"target_modules": r".*\.bias"}),
    "an exclusion": ("gemma2", {"exclude_modules": ["norm"]}),
    "an exclusion by expression": (
        "gpt2",
        {"target_modules": ["ln_1", "ln_2"], "exclude_modules": r".*\.0\..*"},
    ),
    "slashes": ("llama", {"target_modules": "model/layers/1/.*"}),
    "a saved module": ("llama", {"target_modules": ["norm"], "modules_to_save": ["lm_head"]}),
    "a saved norm": ("gpt2", {"target_modules": ["ln_1"], "modules_to_save": ["ln_f"]}),
    "a saved norm whose name ends others": (
        "llama",
        {"target_modules": ["input_layernorm"], "modules_to_save": ["norm"]},
    ),
    "a saved container": (
        "bert",
        {"model_type": "bert", "modules_to_save": ["bert.encoder.layer.1.output", "classifier"]},
    ),
}


@pytest.mark.parametrize("case", OWN)
def test_peft_gives_the_logits_of_what_our_config_trains(case, tmp_path):
    name, fields = OWN[case]
    model, config = make_ours(name).model, lnt.LNTuningConfig(**fields)
    halves = lnt.partition_params(model.params, config, norms=model.norms)
    moved = move_leaves(halves.trainable)
    params = lnt.merge_params(moved, halves.frozen)
    target = lnt.export_peft(
        tmp_path / "adapter", moved, config, base=model.params, norms=model.norms
    )
    loaded = check_export(make_module(name), target, model, params, make_batch(name, seed=99))
    # PEFT holds whole modules: those of the leaves that trained, and no others.
    found = {clean(key) for key, _ in loaded.base_model.model.named_parameters() if is_copy(key)}
    assert {get_module(key) for key in found} == {get_module(key) for key in moved}
    # And what it holds comes back to the same leaves.
    back = lnt.import_peft(target, model.params)
    assert all((back[key] == params[key]).all() for key in params)


def is_copy(key):
    return ".ln_tuning_layers." in key or ".modules_to_save." in key


def get_module(name):
    return name.rpartition(".")[0]


# Configs of PEFT that we must read as it does.
THEIRS = {
    "an expression": ("llama", {"target_modules": r".*\.1\..*layernorm"}),
    "the end of a path": ("bart", {"target_modules": ["encoder.layernorm_embedding"]}),
    "a path": ("gpt2", {"target_modules": ["transformer.ln_f"]}),
    "an exclusion": (
        "bert",
        {"target_modules": ["LayerNorm"], "exclude_modules": ["attention.output.LayerNorm"]},
    ),
    "a saved module": ("llama", {"target_modules": ["norm"], "modules_to_save": ["lm_head"]}),
    "the end of a saved module's name": (
        "llama",
        {"target_modules": ["norm"], "modules_to_save": ["head"]},
    ),
    "a saved norm": ("gpt2", {"target_modules": ["ln_1"], "modules_to_save": ["ln_f"]}),
    "a saved container": ("gpt2", {"target_modules": ["ln_f"], "modules_to_save": ["mlp"]}),
}


@pytest.mark.parametrize("case", THEIRS)
def test_we_give_the_logits_of_what_pefts_config_trains(case, tmp_path):
    name, fields = THEIRS[case]
    wrapped = move(wrap(make_module(name), **fields))
    target = save(wrapped, tmp_path / "adapter")
    model = make_ours(name).model
    check_import(wrapped, target, model, make_batch(name, seed=99))
    # The config that comes with it selects the same leaves here, and goes back to PEFT.
    adapter = lnt.load_peft(target, model.params)
    chosen = lnt.partition_params(model.params, adapter.config).trainable
    trained = {clean(k) for k, p in wrapped.base_model.model.named_parameters() if p.requires_grad}
    assert chosen.keys() == adapter.trainable.keys() == trained
    back = lnt.export_peft(tmp_path / "back", adapter.trainable, adapter.config, base=model.params)
    params = lnt.import_peft(back, model.params)
    check_export(make_module(name), back, model, params, make_batch(name, seed=99))


def test_a_config_of_ours_without_export_is_an_error_in_peft():
    """Why exporting rewrites targets: PEFT knows no default for BERT."""
    with pytest.raises(ValueError, match="Please specify `target_modules`"):
        wrap(make_module("bert"))
    assert isinstance(wrap(make_module("bert"), target_modules=["LayerNorm"]), peft.PeftModel)
