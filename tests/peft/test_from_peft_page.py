"""docs/from-peft.md: its code runs as written."""

import re

import numpy as np
from safetensors.numpy import load_file

import lntune_jax as lnt
from tests.support import peft_files as files
from tests.support.paths import ROOT


def test_the_code_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensors, params = files.make_tensors(), files.make_params()
    files.write_adapter(tmp_path / "peft_adapter", tensors)
    page = (ROOT / "docs" / "from-peft.md").read_text()
    block = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]  # the second is PEFT's
    names = {"params": params}
    exec(block, names)
    assert names["config"].inference_mode is False
    found = names["params"]["bert"]["embeddings"]["LayerNorm"]["scale"]
    key = f"{files.PREFIX}bert.embeddings.LayerNorm.ln_tuning_layers.weight"
    np.testing.assert_array_equal(found, tensors[key])
    written = load_file("for_peft/adapter_model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(written[name].tobytes() == tensors[name].tobytes() for name in tensors)
    lnt.load_peft("for_peft", params)


def test_every_field_of_the_config_is_on_the_page():
    page = (ROOT / "docs" / "from-peft.md").read_text()
    assert [name for name in lnt.LNTuningConfig().to_dict() if f"`{name}`" not in page] == []
