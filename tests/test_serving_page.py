"""docs/serving.md: its commands and its code run as written, and print what the page says."""

import re
import shlex
import shutil

import jax
import numpy as np
from safetensors.numpy import load_file

import lntune_jax as lnt
from lntune_jax.cli import main
from tests.support.banks import make_adapter
from tests.support.checkpoints import REFERENCE
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "serving.md").read_text()
MERGE, BANK, LORA = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TOKENS = np.random.default_rng(0).integers(5, 30, (3, 7)).astype(np.int32)


def test_merging_by_the_command_and_in_python(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(REFERENCE / "decoders" / "llama", "MODEL_DIR")
    model = lnt.models.from_pretrained("MODEL_DIR", "CAUSAL_LM")
    trainable, _ = lnt.partition_params(model.params, lnt.LNTuningConfig())
    tuned = {path: 2 * leaf for path, leaf in trainable.items()}  # exact in the base's dtype
    lnt.save_adapter("run/adapter", tuned, lnt.LNTuningConfig(), base=model.params)
    (command,) = re.findall(r"^lntune-jax (merge .*)$", PAGE, re.MULTILINE)
    assert main(shlex.split(command)) == 0
    by_command = load_file("merged/model.safetensors")
    shutil.rmtree("merged")
    capsys.readouterr()
    exec(MERGE, {"lnt": lnt})
    assert "LlamaForCausalLM" in capsys.readouterr().out
    in_python = load_file("merged/model.safetensors")
    assert by_command.keys() == in_python.keys()
    assert all(np.array_equal(by_command[name], in_python[name]) for name in by_command)
    served = lnt.models.from_pretrained("merged", "CAUSAL_LM")
    found = served.apply(served.params, TOKENS).logits
    params = lnt.restore_adapter("run/adapter", model.params)
    np.testing.assert_allclose(found, model.apply(params, TOKENS).logits, atol=1e-5)


def test_a_bank_of_tenants(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = lnt.models.from_pretrained(REFERENCE / "decoders" / "llama", "CAUSAL_LM")
    tenants = ("french", "german", "italian")
    for seed, name in enumerate(tenants):
        lnt.save_adapter(f"adapters/{name}", *make_adapter(model.params, seed), base=model.params)
    names = {"model": model, "tokens": TOKENS, "mask": np.ones_like(TOKENS)}
    exec(BANK, names)
    assert names["predict"]._cache_size() == 1  # "nothing is compiled again"
    for row, name in enumerate(["italian", "base", "french"]):
        params = model.params
        if name != "base":
            params = lnt.restore_adapter(f"adapters/{name}", params)
        alone = jax.jit(model.apply)(params, TOKENS[row : row + 1]).logits[0]
        np.testing.assert_allclose(names["logits"][row], alone, atol=1e-5)


def test_a_norm_s_change_has_full_rank(capsys):
    exec(LORA, {})
    printed = capsys.readouterr().out
    assert f"```\n{printed}```" in PAGE
    assert printed.startswith("rank 256\n")
