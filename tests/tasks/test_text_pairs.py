"""`train --text-pair-column`: a classifier of two texts, as GLUE's tasks need."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax import models, tasks
from lntune_jax.data.batches import PlannedBatch, Rows, assemble
from lntune_jax.data.encode import encode_inputs, load_tokenizer
from lntune_jax.tasks import text_classification
from tests.support.runs import check, make_decoder, same_adapter, without_times

FLAGS = ("--text-column", "one", "--text-pair-column", "two", "--batch-size", "8")
FLAGS = (*FLAGS, "--buckets", "2", "--max-steps", "6", "--eval-every", "3", "--pooling", "mean")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """40 rows whose label is that both texts have the same word."""
    draw, path = random.Random(0), tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = []
    for number in range(40):
        one, other = draw.choice([("good", "bad"), ("bad", "good")])
        same = number % 2 == 0
        rest = (f"word{draw.randrange(20)}" for _ in range(2))
        second = f"{one if same else other} {next(rest)}"
        rows.append({"one": f"{one} {next(rest)} " * 3, "two": second, "label": "ny"[same]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory, model_directory, pairs):
    from lntune_jax.cli import main

    output = tmp_path_factory.mktemp("runs") / "pairs"
    words = ("train", "--model", model_directory, "--data", pairs, *FLAGS, "--output", output)
    assert main([str(word) for word in words]) == 0
    return output


@pytest.mark.parametrize("limit", [40, 8])
def test_tokens_and_types_are_the_tokenizers_of_a_pair(model_directory, limit):
    tokenizer = load_tokenizer(str(model_directory))
    ones, twos = ["good word1 word2 word3 word4", "bad"], ["word5", "word6 good word1"]
    config = SimpleNamespace(vocab_size=40, type_vocab_size=2)
    tokens, types = encode_inputs(tokenizer, ones, twos, limit, config)
    for number, pair in enumerate(zip(ones, twos, strict=True)):
        expected = tokenizer(*pair, truncation=True, max_length=limit)
        assert tokens[number].tolist() == expected["input_ids"]
        assert types[number].tolist() == expected["token_type_ids"]
    assert [each.sum() for each in types] == [2, 4]


def test_a_model_without_types_gets_none(model_directory):
    """RoBERTa has one type for both texts, DistilBERT has none."""
    tokenizer = load_tokenizer(str(model_directory))
    for config in (
        SimpleNamespace(vocab_size=40, type_vocab_size=1),
        SimpleNamespace(vocab_size=40),
    ):
        tokens, types = encode_inputs(tokenizer, ["good"], ["bad"], 40, config)
        assert types is None
        assert tokens[0].tolist() == [2, 5, 3, 6, 3]


def test_a_batch_holds_the_types_of_its_rows():
    tokens = (np.array([4, 5, 6]), np.array([7, 8]))
    rows = Rows(tokens, np.array([0, 1]), types=(np.array([0, 1, 1]), np.array([0, 1])))
    batch = assemble(PlannedBatch(np.array([0]), 4), rows.take(np.array([1, 0])), 2, padding=9)
    assert batch["input_ids"].tolist() == [[7, 8, 9, 9]] * 2
    assert batch["token_type_ids"].tolist() == [[0, 1, 0, 0]] * 2
    assert "token_type_ids" not in assemble(
        PlannedBatch(np.array([0]), 4), Rows(tokens, np.array([0, 1])), 2, padding=9
    )


def test_the_model_reads_the_types(model_directory, pairs):
    columns = tasks.Columns(text_column="one", text_pair_column="two")
    options = tasks.TaskOptions(str(model_directory), pairs, columns=columns, batch_size=4)
    (task,) = text_classification.prepare(options, text_classification.read(options))
    batch, _ = task.assemble(PlannedBatch(np.arange(4), 24), 4)
    assert batch["token_type_ids"].max() == 1
    loss_fn = task.loss_fn()
    without = {name: array for name, array in batch.items() if name != "token_type_ids"}
    with_types, without_types = (
        float(loss_fn(task.params, each).total) for each in (batch, without)
    )
    logits = task.model.apply(
        task.params,
        batch["input_ids"],
        attention_mask=batch["attention_mask"],
        token_type_ids=batch["token_type_ids"],
    ).logits
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -np.log(shares[np.arange(4), batch["classes"]]).sum()
    assert with_types == pytest.approx(expected, rel=1e-4)
    assert abs(with_types - without_types) > 1e-4


def test_a_decoder_reads_pairs_without_types(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("text,two,label\n" + "w1 w2,w3,a\nw4,w5 w6,b\n" * 4)
    columns = tasks.Columns(text_pair_column="two")
    directory = make_decoder(tmp_path / "decoder")
    options = tasks.TaskOptions(str(directory), path, columns=columns, batch_size=2)
    (task,) = text_classification.prepare(options, text_classification.read(options))
    assert task.training.types is None
    batch, _ = task.assemble(PlannedBatch(np.arange(2), 16), 2)
    assert np.isfinite(float(task.loss_fn()(task.params, batch).total))


def test_evaluate_measures_what_training_measured(run, finished, pairs, tmp_path, model_directory):
    words = ("train", "--model", model_directory, "--data", pairs, *FLAGS, "--eval-data", pairs)
    assert run(*words, "--output", tmp_path / "run")[0] == 0
    report = tmp_path / "report.json"
    words = ("evaluate", "--run", tmp_path / "run", "--data", pairs, "--output", report)
    code, _, complaint = run(*words)
    assert (code, complaint) == (0, "")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    measured = json.loads(report.read_text())
    assert measured["loss"] == pytest.approx(summary["best"]["loss"], abs=1e-5)
    assert measured["accuracy"] == summary["best"]["accuracy"]


def test_predict_labels_pairs(run, finished, pairs, tmp_path):
    words = ("predict", "--run", finished)
    code, printed, complaint = run(*words, "--data", pairs, "--output", tmp_path / "out.jsonl")
    assert (code, complaint) == (0, "")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    given = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert [(row["text"], row["text_pair"]) for row in rows] == [
        (row["one"], row["two"]) for row in given
    ]
    code, printed, _ = run(*words, "--text", given[0]["one"], "--text-pair", given[0]["two"])
    found = json.loads(printed)
    assert found["label"] == rows[0]["label"]
    assert found["probabilities"]["y"] == pytest.approx(rows[0]["probabilities"]["y"], abs=1e-5)
    assert run(*words, "--data", pairs, "--output", tmp_path / "out.csv")[0] == 0
    assert (tmp_path / "out.csv").read_text().startswith("text,text_pair,label,probability_n")


def test_a_stopped_run_goes_on_bit_for_bit(run, finished, pairs, model_directory, tmp_path):
    words = ("train", "--model", model_directory, "--data", pairs, *FLAGS)
    words = (*words, "--output", tmp_path / "run")
    assert run(*words, "--stop-after-steps", "2")[0] == 0
    assert run(*words, "--resume")[0] == 0
    assert same_adapter(tmp_path / "run", finished)
    assert without_times(tmp_path / "run") == without_times(finished)


def test_one_text_where_two_are_asked_for_is_refused(run, finished, make_run, pairs, tmp_path):
    check(run("predict", "--run", finished, "--text", "a"), "two texts", "--text-pair")
    uneven = ("--text", "a", "b", "--text-pair", "c")
    check(run("predict", "--run", finished, *uneven), "2 texts", "--text-pair 1")
    single = ("predict", "--run", make_run("mean"), "--text", "a", "--text-pair", "b")
    check(run(*single), "one text")


def test_faults_of_the_second_column_are_said(run, model_directory, pairs, tmp_path):
    words = ("train", "--model", model_directory, "--output", tmp_path / "run")
    columns = ("--text-column", "one", "--text-pair-column", "too")
    check(run(*words, "--data", pairs, *columns), "'too'", "'two'", "--text-pair-column")
    data = tmp_path / "a.jsonl"
    rows = [{"text": "a", "two": value, "label": "x"} for value in ("b", "", 3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = ("line 2: no text in column 'two'", "line 3: int", "--text-pair-column")
    check(run(*words, "--data", data, "--text-pair-column", "two"), *told)
    other = ("--data", data, "--text-pair-column", "two", "--task", "similarity")
    check(run(*words, *other), "--text-pair-column", "seq_cls")


def test_an_adapter_that_is_older_than_pairs_reads_one_text(
    run, make_run, model_directory, tmp_path
):
    adapter, directory = lnt.load_adapter(make_run("mean") / "adapter"), tmp_path / "adapter"
    task = {name: value for name, value in adapter.task.items() if name != "text_pair_column"}
    base = models.from_pretrained(model_directory, task="SEQ_CLS", num_labels=2, pooling="mean")
    lnt.save_adapter(directory, adapter.trainable, adapter.config, base=base.params, task=task)
    code, printed, complaint = run("predict", "--adapter", directory, "--text", "good")
    assert (code, complaint) == (0, "")
    # What `make_run` printed comes before it.
    assert "text_pair" not in json.loads(printed.splitlines()[-1])


def test_segments_of_a_pair_reach_bert_alone(model_directory):
    """What `encode_inputs` goes by: the config's number of types."""
    assert models.from_config(model_directory, task="SEQ_CLS").config.type_vocab_size == 2
