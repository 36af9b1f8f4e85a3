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


def test_every_task_of_train_can_be_inspected(run, model_directory):
    printed = inspect(run, model_directory, "--task", "token_cls", "--num-labels", 5)
    assert "as a classifier of 5 classes (task TOKEN_CLS)" in printed
    assert "trained whole: classifier" in printed
    printed = inspect(run, model_directory, "--task", "similarity", "--max-length", 8)
    assert "without a head" in printed
    assert "LN tuning" in printed
    code, _, complaint = run("inspect", DECODERS / "llama", "--task", "token_cls")
    assert code == 2
    assert "TOKEN_CLS" in complaint
