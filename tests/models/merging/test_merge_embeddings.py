"""PEFT adapters that saved word embeddings, over bases whose output is a matrix of its own."""

import json

import numpy as np
import pytest

from lntune_jax.cli import main
from lntune_jax.errors import AdapterError
from lntune_jax.models import from_pretrained, merge_checkpoint
from tests.support import peft_files
from tests.support.checkpoints import REFERENCE
from tests.support.decoders import REFERENCE as DECODERS
from tests.support.merging import load_all, refuse

# The base, its task, the module that is saved, its key, and that of the output.
CASES = {
    "llama": ("CAUSAL_LM", "embed_tokens", "model.embed_tokens.weight", "lm_head.weight"),
    "gpt2_untied": ("CAUSAL_LM", "wte", "transformer.wte.weight", "lm_head.weight"),
    "bert_masked_lm_untied": (
        None,
        "word_embeddings",
        "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.weight",
    ),
}
NORMS = ("norm.", "layernorm.", "LayerNorm.", "ln_1.", "ln_2.", "ln_f.")


def tune(base, directory, saved, extra=(), **config):
    """Write PEFT's file: every norm one higher, the saved keys twice as large."""
    tensors, modules = load_all(base), set()
    values = {}
    for key, value in tensors.items():
        module, _, leaf = key.rpartition(".")
        if f"{module}.".endswith(NORMS):
            modules.add(module.rpartition(".")[2])
            values[f"{peft_files.PREFIX}{module}.ln_tuning_layers.{leaf}"] = value + 1
    values |= {peft_files.PREFIX + key: 2 * tensors[key] for key in saved}
    values |= {peft_files.PREFIX + key: value for key, value in dict(extra).items()}
    peft_files.write_adapter(directory, values, target_modules=sorted(modules), **config)
    return tensors


@pytest.mark.parametrize("name", CASES)
def test_the_embeddings_are_merged_and_the_output_stays(tmp_path, name):
    task, module, embeddings, output = CASES[name]
    base = (REFERENCE if name.startswith("bert") else DECODERS) / name
    before = tune(base, tmp_path / "peft", [embeddings], modules_to_save=[module], task_type=task)
    merged = merge_checkpoint(base, tmp_path / "peft", tmp_path / "merged")
    after = load_all(merged.path)
    assert after.keys() == before.keys()
    assert embeddings in merged.tuned
    for key, value in before.items():
        expected = 2 * value if key == embeddings else value + 1 if key in merged.tuned else value
        np.testing.assert_array_equal(after[key], expected, err_msg=key)
    np.testing.assert_array_equal(after[output], before[output])
    assert (merged.path / "config.json").read_bytes() == (base / "config.json").read_bytes()


@pytest.mark.parametrize("names", ["torch", "flax"])
def test_convert_reads_what_merge_reads(tmp_path, capsys, names):
    base = DECODERS / "llama"
    saved = {"modules_to_save": ["embed_tokens"], "task_type": "CAUSAL_LM"}
    tune(base, tmp_path / "peft", ["model.embed_tokens.weight"], **saved)
    words = ["convert", tmp_path / "peft", tmp_path / "ours", "--model", base]
    assert main([*map(str, words), "--leaf-names", names]) == 0, capsys.readouterr().err
    one, other = (
        load_all(merge_checkpoint(base, tmp_path / kind, tmp_path / f"merged {kind}").path)
        for kind in ("peft", "ours")
    )
    for key, value in one.items():
        np.testing.assert_array_equal(other[key], value, err_msg=key)


def test_a_new_classifier_beside_saved_embeddings(tmp_path):
    base, score = DECODERS / "llama", np.ones((3, 24), np.float32)
    tune(
        base,
        tmp_path / "peft",
        ["model.embed_tokens.weight"],
        {"score.weight": score},
        modules_to_save=["score", "embed_tokens"],
        task_type="SEQ_CLS",
    )
    merged = merge_checkpoint(base, tmp_path / "peft", tmp_path / "merged")
    assert (merged.added, merged.left_out) == (("score.weight",), ("lm_head.weight",))
    model = from_pretrained(merged.path, "SEQ_CLS")
    assert not model.fresh
    np.testing.assert_array_equal(model.params["score"]["kernel"], score.T)


@pytest.mark.parametrize("name", ["llama_tied", "gpt2"])
def test_a_shared_matrix_is_refused_still(tmp_path, name):
    """PEFT trained a copy of it, and left the output as it was."""
    base = DECODERS / name
    module, key = CASES["gpt2_untied" if name == "gpt2" else "llama"][1:3]
    assert json.loads((base / "config.json").read_text()).get("tie_word_embeddings", True)
    tune(base, tmp_path / "peft", [key], modules_to_save=[module], task_type="CAUSAL_LM")
    match = "no output weight of its own"
    refuse(AdapterError, match, base, tmp_path / "peft", tmp_path / "merged")
