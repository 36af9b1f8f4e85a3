"""A quantised base through the commands: trained over, remembered, shown, merged."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.models import from_pretrained
from tests.support.outcomes import refused
from tests.support.runs import FLAGS, make_decoder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return make_decoder(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    documents = (" ".join(f"w{(start + step) % 40}" for step in range(12)) for start in range(20))
    path.write_text("\n\n".join(documents) + "\n")
    return path


@pytest.fixture(scope="module")
def classifier_words(model_directory, table):
    words = ("train", "--model", model_directory, "--data", table, "--max-steps", 2)
    return (*words, "--buckets", 1, "--pooling", "mean")


def test_a_classifier_over_int8(run, classifier_words, table, model_directory, tmp_path):
    output = tmp_path / "run"
    code, _, complaint = run(*classifier_words, "--quantize", "int8", "--output", output)
    assert (code, complaint) == (0, "")
    model = from_pretrained(
        model_directory, "SEQ_CLS", quantize="int8", pooling="mean", num_labels=2
    )
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    assert f"base in memory: {kept:,} bytes, the layers' kernels in int8 (" in run.notes
    code, _, _ = run("evaluate", "--run", output, "--data", table)
    assert code == 0
    summary = json.loads((output / "summary.json").read_text())
    code, _, complaint = run("predict", "--run", output, "--text", "good word1")
    assert (code, complaint) == (0, "")
    assert 0 <= summary["best_accuracy"] <= 1
    # Another base than the one trained over is no silent continuation.
    refused(
        run(*classifier_words, "--quantize", "nf4", "--output", output, "--resume"),
        "it was started with --quantize int8, not nf4",
    )


def test_a_language_model_over_nf4(run, decoder, texts, tmp_path):
    output, merged = tmp_path / "run", tmp_path / "merged"
    words = ("train", "--model", decoder, "--data", texts, *FLAGS, "--epochs", 2)
    code, printed, complaint = run(*words, "--quantize", "nf4", "--output", output)
    assert (code, complaint) == (0, "")
    assert "kernels in nf4 (" in run.notes
    summary = json.loads((output / "summary.json").read_text())
    assert summary["best_perplexity"] < summary["first_perplexity"]
    figures = tmp_path / "figures.json"
    code, *_ = run("evaluate", "--run", output, "--data", texts, "--output", figures)
    assert code == 0
    assert json.loads(figures.read_text())["perplexity"] < summary["first_perplexity"]
    # `generate` finds in the adapter what it was trained over.
    tell = ("generate", "--model", decoder, "--prompt", "w1 w2", "--max-new-tokens", 4)
    code, found, complaint = run(*tell, "--adapter", output)
    assert (code, complaint) == (0, "")
    assert run(*tell, "--adapter", output, "--quantize", "nf4")[1] == found
    refused(
        run(*tell, "--adapter", output, "--quantize", "int8"),
        "quantised kernels: nf4 expected, int8 found",
    )
    assert run(*tell, "--quantize", "int8")[0] == 0
    code, printed, complaint = run(
        "merge", "--model", decoder, "--adapter", output, "--output", merged
    )
    assert (code, complaint) == (0, "")
    assert "the adapter was trained over kernels in nf4; here it is over the" in printed
    whole = from_pretrained(merged, "CAUSAL_LM").params
    leaves, _ = lnt.load_adapter(output / "adapter")
    expected = leaves["model.norm.scale"].astype(jnp.bfloat16)  # which the checkpoint has
    np.testing.assert_array_equal(whole["model"]["norm"]["scale"], expected)


def test_inspect_shows_what_it_saves(run, decoder):
    words = ("inspect", decoder, "--task", "CAUSAL_LM", "--length", 32)
    tables = [run(*words, *more)[1] for more in ((), ("--quantize", "int4"))]
    assert "base in memory" not in tables[0]
    assert "kernels in int4 (but for full)" in tables[1]
    weights = [
        next(line.split()[1:] for line in table.splitlines() if line.startswith("weights"))
        for table in tables
    ]
    assert all(float(few) <= float(whole) for few, whole in zip(*weights[::-1], strict=True))
    assert weights[0][2] == weights[1][2]


def test_a_kind_that_is_none(run, classifier_words, tmp_path):
    code, _, complaint = run(*classifier_words, "--quantize", "w8a8", "--output", tmp_path / "run")
    assert code == 2
    assert "--quantize" in complaint
