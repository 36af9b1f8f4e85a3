"""A run's life: tried before, without an evaluation, resumed by its name alone, and longer."""

import json

import pytest

from lntune_jax.trainer import read_metrics
from tests.support.runs import FLAGS, make_decoder, same_adapter


@pytest.fixture
def words(model_directory, table, tmp_path):
    words = ("train", "--model", model_directory, "--data", table, "--output", tmp_path / "run")
    return (*words, "--pooling", "mean", "--buckets", 1, "--batch-size", 8)


def test_a_dry_run_says_everything_and_writes_nothing(run, words, tmp_path):
    code, printed, complaint = run(*words, "--max-steps", 3, "--dry-run")
    assert (code, complaint) == (0, "")
    for part in ("trainable params: 194 ||", "layer.{0,1}", "steps: 3, 7 an epoch", "[CLS]"):
        assert part in printed
    assert "its label: " in printed
    assert "memory of a step, estimated" in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_a_chat_shows_what_the_loss_counts(run, tmp_path):
    chat = [{"role": "user", "content": "w0 w1"}, {"role": "assistant", "content": "w2 w3"}]
    data = tmp_path / "chats.jsonl"
    data.write_text("\n".join([json.dumps({"messages": chat})] * 4))
    model = make_decoder(tmp_path / "decoder")
    words = ("train", "--model", model, "--data", data, "--output", tmp_path / "run", *FLAGS)
    code, printed, complaint = run(*words, "--no-packing", "--dry-run")
    assert (code, complaint) == (0, "")
    row = printed[printed.index("a row (") :].split()
    assert {"w0", "w1", "[w2]", "[w3]"} <= set(row)
    assert "the loss counts what is in brackets" in printed


def test_without_an_evaluation_all_rows_train(run, words, tmp_path):
    code, printed, complaint = run(*words, "--max-steps", 3, "--no-eval")
    assert (code, complaint) == (0, "")
    assert "60 trained on, 0 evaluated on" in printed
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [(line["split"], line["step"]) for line in lines] == [("train", n) for n in (1, 2, 3)]
    assert run("predict", "--run", tmp_path / "run", "--text", "good")[0] == 0
    for more in (("--seeds", 2), ("--patience", 2)):
        code, _, complaint = run(*words, "--no-eval", "--overwrite", *more)
        assert code == 2
        assert "nothing to compare" in complaint
    code, _, complaint = run(*words, "--no-eval", "--overwrite", "--eval-fraction", 0.2)
    assert code == 2
    assert "contradict each other" in complaint


def test_a_run_is_resumed_by_its_name_and_may_get_longer(run, words, tmp_path):
    part, whole = tmp_path / "run", tmp_path / "whole"
    assert run(*words, "--max-steps", 4, "--stop-after-steps", 2)[0] == 0
    code, _, complaint = run("train", "--resume", part)
    assert (code, complaint) == (0, "")
    assert run(*words, "--max-steps", 4, "--output", whole)[0] == 0
    assert same_adapter(part, whole)
    code, printed, complaint = run("train", "--resume", part, "--max-steps", 6)
    assert (code, complaint) == (0, "")
    assert "6 of 6" in printed
    lines = read_metrics(part / "metrics.jsonl")
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    code, printed, complaint = run("train", "--resume", part)
    assert (code, complaint) == (0, "")
    assert "nothing to resume" in run.notes
    code, _, complaint = run("train", "--resume", part, "--max-steps", 5)
    assert code == 2
    assert "it was started with --max-steps 6, not 5" in complaint
    code, _, complaint = run("train", "--resume", tmp_path / "nowhere")
    assert code == 2
    assert "there is no run.yaml" in complaint


def test_what_was_never_a_run_is_left_alone(run, words, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for more in ((), ("--overwrite",), ("--resume",)):
        code, _, complaint = run(*words, "--max-steps", 1, *more)
        assert code == 2
        assert "it was never a run of lntune-jax" in complaint
    assert (tmp_path / "run" / "checkpoints").is_dir()
