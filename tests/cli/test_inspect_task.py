"""`inspect` counts the head that a model's file says it has."""

import json

import pytest

from tests.support.paths import REFERENCE

DECODERS = REFERENCE / "decoders"


def inspect(run, directory, *flags):
    code, printed, complaint = run("inspect", directory, *flags)
    assert code == 0, complaint
    return printed


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text"])
def test_a_decoder_gets_no_classifier(run, name):
    assert "score" not in inspect(run, DECODERS / name)
    assert "score" in inspect(run, DECODERS / name, "--task", "SEQ_CLS")


def test_a_decoder_that_is_a_classifier_keeps_its_labels(run):
    directory = DECODERS / "llama_seq_cls"
    labels = len(json.loads((directory / "config.json").read_text())["id2label"])
    assert labels != 2
    printed = inspect(run, directory)
    assert "score" in printed
    assert printed == inspect(run, directory, "--task", "SEQ_CLS", "--num-labels", labels)


def test_an_encoder_gets_a_classifier(run, model_directory):
    assert "classifier" in inspect(run, model_directory)
    assert "classifier" not in inspect(run, model_directory, "--task", "none")
