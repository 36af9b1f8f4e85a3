"""Training with scanned layers from the command line: files, resuming, and what uses the run."""

import json

import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.models import from_pretrained
from tests.support.runs import FLAGS, check, make_decoder, same_adapter, without_times

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    directory = tmp_path_factory.mktemp("scanned")
    data = directory / "texts.txt"
    data.write_text("\n\n".join(f"w{n} w{n + 1} w{n + 2} w{n + 3}" for n in range(36)) + "\n")
    model = make_decoder(directory / "llama")
    return ("train", "--model", model, "--data", data, *FLAGS, "--epochs", "2")


@pytest.fixture(scope="module")
def runs(words):
    """The same run with layers apart and scanned."""
    from lntune_jax.cli import main

    outputs = {}
    for flags in ((), ("--scan-layers",)):
        output = words[2].parent / f"run{len(flags)}"
        assert main([str(word) for word in (*words, *flags, "--output", output)]) == 0
        outputs[bool(flags)] = output
    return outputs


def test_the_adapter_is_by_layer_and_nearly_the_same(runs):
    apart, scanned = (lnt.load_adapter(runs[form] / "adapter") for form in (False, True))
    assert "model.layers.1.input_layernorm.scale" in scanned.trainable
    assert apart.config == scanned.config
    for path, leaf in apart.trainable.items():
        np.testing.assert_allclose(scanned.trainable[path], leaf, atol=1e-3)
    settings = json.loads((runs[True] / "settings.json").read_text())
    assert settings["scan_layers"] is True
    figures = [json.loads((run / "summary.json").read_text()) for run in runs.values()]
    assert figures[0]["trainable"] == figures[1]["trainable"] == 5 * 24
    assert figures[1]["best"]["perplexity"] == pytest.approx(
        figures[0]["best"]["perplexity"], rel=1e-3
    )


def test_a_resumed_run_gives_the_same_bits(run, runs, words, tmp_path):
    output = tmp_path / "parts"
    for stop in (2, 100):
        flags = ("--scan-layers", "--resume", "--stop-after-steps", stop)
        assert run(*words, "--output", output, *flags)[0] == 0
    assert same_adapter(runs[True], output)
    assert without_times(runs[True]) == without_times(output)


def test_a_run_goes_on_in_the_form_it_was_started_in(run, words, tmp_path):
    flags = ("--output", tmp_path / "run", "--stop-after-steps", 1)
    assert run(*words, *flags, "--scan-layers")[0] == 0
    check(run(*words, *flags, "--resume"), "started with --scan-layers True, not False")


def test_others_use_the_run(run, runs, words, tmp_path):
    """They load the model with layers apart."""
    flags = ("--run", runs[True], "--data", words[4], "--output", tmp_path / "report.json")
    assert run("evaluate", *flags)[0] == 0
    assert json.loads((tmp_path / "report.json").read_text())["perplexity"] > 1
    flags = ("--model", words[2], "--adapter", runs[True], "--prompt", "w1 w2")
    code, printed, complaint = run("generate", *flags, "--max-new-tokens", "4")
    assert (code, complaint) == (0, "")
    assert printed.strip()
    flags = ("--model", words[2], "--adapter", runs[True], "--output", tmp_path / "merged")
    assert run("merge", *flags)[0] == 0
    tuned, config = lnt.load_adapter(runs[True] / "adapter")
    merged = from_pretrained(tmp_path / "merged", task="CAUSAL_LM")
    leaves, _ = lnt.partition_params(merged.params, config)
    assert leaves.keys() == tuned.keys()
    for path in tuned:
        assert np.allclose(leaves[path], tuned[path], rtol=2**-8)


def test_an_encoder_says_that_it_cannot(run, model_directory, table, tmp_path):
    words = ("train", "--model", model_directory, "--data", table, "--output", tmp_path / "no")
    check(
        run(*words, "--scan-layers"),
        "--scan-layers is given, which bert does not have: leave it out",
    )
