"""Published config.json files are honoured, and give the published counts."""

from __future__ import annotations

import pytest

import lntune_jax as lnt
from lntune_jax.models import from_config
from tests.support.published_files import PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(name):
    fields, (total, norms) = PUBLISHED[name]
    report = lnt.report_params(from_config(fields, "CAUSAL_LM").params, lnt.LNTuningConfig())
    assert (report.total, report.trainable) == (total, norms)


@pytest.mark.long
def test_what_published_configs_come_to():
    settings = {name: from_config(fields).settings for name, (fields, _) in PUBLISHED.items()}
    assert settings["Llama-3.2-3B"].layers[0].rope.kind == "llama3"
    assert settings["Qwen2.5-0.5B"].layers[0].rope.kind == "yarn"
    assert {layer.window for layer in settings["Qwen2.5-0.5B"].layers} == {None}
    assert {layer.window for layer in settings["Mistral-7B-v0.1"].layers} == {4096}
    assert settings["gemma-2b"].activation == "gelu_pytorch_tanh"
    gemma3 = settings["gemma-3-1b"].layers
    assert [layer.window is None for layer in gemma3[:7]] == [False] * 5 + [True, False]
    assert [layer.rope.theta for layer in gemma3[4:6]] == [10_000.0, 1_000_000.0]
