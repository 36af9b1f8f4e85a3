"""An adapter directory is all that the commands need: nothing beside or above it is read."""

import json
import shutil
import warnings

import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.errors import FreshWeightsWarning
from lntune_jax.models import merge_checkpoint
from tests.support.outcomes import refused
from tests.support.runs import FLAGS, LENGTH, make_decoder
from tests.support.runs import WORDS as DECODER_WORDS

TEXTS = ("good word1 good", "bad word2", "word3 good")
NAME = "learning_rate-0.02"


@pytest.fixture(scope="module")
def make_alone(tmp_path_factory, model_directory, table):
    """One adapter of a sweep, moved to where nothing else lies; and the sweep."""
    from lntune_jax.cli import main

    made = {}

    def make(pooling):
        if pooling not in made:
            run = tmp_path_factory.mktemp("sweeps") / "run"
            words = ["train", "--model", model_directory, "--data", table, "--max-steps", 2]
            words += ["--sweep", "learning_rate=0.005,0.02", "--output", run, "--buckets", 1]
            assert main([str(word) for word in [*words, "--pooling", pooling]]) == 0
            place = tmp_path_factory.mktemp("alone") / "moved"
            made[pooling] = run, shutil.copytree(run / "adapters" / NAME, place)
        return made[pooling]

    return make


def read_lines(outcome):
    code, printed, complaint = outcome
    assert (code, complaint) == (0, "")
    return [json.loads(line) for line in printed.splitlines() if line[0] == "{"]


@pytest.mark.parametrize("pooling", ["default", "mean"])
def test_one_of_a_sweep_labels_texts_where_it_was_moved(run, make_alone, table, pooling):
    sweep, alone = make_alone(pooling)
    there = read_lines(run("predict", "--adapter", sweep / "adapters" / NAME, "--text", *TEXTS))
    here = read_lines(run("predict", "--adapter", alone, "--text", *TEXTS))
    assert here == there
    assert here[0]["probabilities"].keys() == {"neg", "pos"}
    code, printed, _ = run("evaluate", "--adapter", alone, "--data", table)
    assert code == 0
    assert "accuracy" in printed


def test_one_of_a_sweep_is_merged_with_its_labels(run, make_alone, model_directory, tmp_path):
    sweep, alone = make_alone("default")
    for number, place in enumerate((alone, sweep / "adapters" / NAME)):
        merged = tmp_path / f"merged{number}"
        code, _, complaint = run("merge", "--adapter", place, "--output", merged)
        assert (code, complaint) == (0, "")
        fields = json.loads((merged / "config.json").read_text())
        assert fields["id2label"] == {"0": "neg", "1": "pos"}
    again = lnt.models.from_pretrained(merged, task="SEQ_CLS")
    logits = again.apply(again.params, np.array([[2, 5, 8, 3]])).logits
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    (found,) = read_lines(run("predict", "--adapter", alone, "--text", "good word1"))
    np.testing.assert_allclose(found["probabilities"]["pos"], shares[0, 1], atol=2e-6)
    assert model_directory.is_dir()


def test_one_of_a_sweep_that_pools_by_the_mean_is_not_merged_in_silence(run, make_alone, tmp_path):
    sweep, alone = make_alone("mean")
    for place in (alone, sweep / "adapters" / NAME):
        words = ("merge", "--adapter", place, "--output", tmp_path / "merged")
        refused(run(*words), "reads the mean over tokens", "--norms-only")
    assert not (tmp_path / "merged").exists()


@pytest.mark.filterwarnings("default")  # as outside of tests: printed, not raised
def test_one_of_a_sweep_is_converted_with_its_warning(run, make_alone, tmp_path):
    _, alone = make_alone("mean")
    code, _, complaint = run("convert", alone, tmp_path / "peft")
    assert code == 0
    assert "the classifier reads the mean over tokens" in complaint


def test_files_beside_and_above_are_not_read(run, make_alone, tmp_path):
    """Another run's files there change nothing."""
    _, alone = make_alone("default")
    place = shutil.copytree(alone, tmp_path / "other" / "adapters" / "one")
    for directory in (tmp_path / "other", tmp_path / "other" / "adapters"):
        for name in ("labels.json", "language.json", "settings.json", "run.json"):
            (directory / name).write_text("{")
    expected = read_lines(run("predict", "--adapter", alone, "--text", *TEXTS))
    assert read_lines(run("predict", "--adapter", place, "--text", *TEXTS)) == expected
    merged = merge_checkpoint(
        lnt.load_adapter(alone).config.base_model_name_or_path, place, tmp_path / "merged"
    )
    assert "neg" in (merged.path / "config.json").read_text()


@pytest.fixture
def undescribed(make_alone, tmp_path):
    """The same leaves saved by a library's user, who says nothing of the task."""
    _, alone = make_alone("mean")
    trainable, config = lnt.load_adapter(alone)
    base = lnt.models.from_pretrained(
        config.base_model_name_or_path, task="SEQ_CLS", num_labels=2, pooling="mean"
    )
    return lnt.save_adapter(tmp_path / "own", trainable, config, base=base.params)


@pytest.fixture
def save_own(make_alone, model_directory, tmp_path):
    """Saves the same leaves with another config and description: `save_own(task, **changes)`."""
    trainable, config = lnt.load_adapter(make_alone("default")[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FreshWeightsWarning)
        base = lnt.models.from_pretrained(model_directory, task="SEQ_CLS", num_labels=2)

    def save(task, **changes):
        own = config.replace(**changes)
        return lnt.save_adapter(tmp_path / "own", trainable, own, base=base.params, task=task)

    return save


@pytest.mark.filterwarnings("default")
def test_an_adapter_that_says_nothing_needs_flags(run, make_alone, undescribed, table):
    words = ("predict", "--adapter", undescribed, "--text", *TEXTS)
    refused(run(*words), "own", "--labels", "--pooling", "--max-length")
    refused(run("evaluate", *words[1:3], "--data", table), "--labels", "--pooling")
    flags = ("--labels", "neg", "pos", "--pooling", "mean")
    assert "rows of 128 tokens (--max-length)" in run(*words, *flags)[2]
    found = read_lines(run(*words, *flags, "--max-length", 128))
    assert found == read_lines(run("predict", "--adapter", make_alone("mean")[1], *words[3:]))
    refused(
        run(*words, "--labels", "a", "b", "c", "--max-length", 128), "--labels", "3 labels", "2"
    )


@pytest.mark.filterwarnings("default")
def test_a_merge_says_what_it_cannot_know(run, save_own, tmp_path):
    words = ("merge", "--adapter", save_own(None), "--labels", "no", "yes")
    code, _, complaint = run(*words, "--output", tmp_path / "merged")
    assert code == 0
    assert "does not say how its classifier pools" in complaint
    fields = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert fields["label2id"] == {"no": 0, "yes": 1}


def test_a_base_that_is_not_named(run, make_alone, save_own, tmp_path, model_directory):
    _, alone = make_alone("default")
    task = json.loads((alone / "lntune.json").read_text())["task"]
    own = save_own(task, base_model_name_or_path=None)
    refused(run("predict", "--adapter", own, "--text", "a"), "names no base", "--model")
    refused(run("merge", "--adapter", own, "--output", tmp_path / "m"), "names no base", "--model")
    words = ("predict", "--adapter", own, "--text", *TEXTS, "--model", model_directory)
    assert read_lines(run(*words)) == read_lines(
        run("predict", "--adapter", alone, "--text", *TEXTS)
    )


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"task": "masked_lm"}, ["'masked_lm'", "seq_cls, token_cls, causal_lm"]),
        ({"task": "seq_cls"}, ["labels"]),
        ({"task": "seq_cls", "labels": "neg"}, ["labels", "'neg'"]),
        ({"task": "seq_cls", "labels": ["neg", "pos"]}, ["pooling", "None"]),
        (
            {"task": "seq_cls", "labels": ["a", "b"], "pooling": "mean", "max_length": "x"},
            ["max_length", "'x'"],
        ),
    ],
)
def test_a_description_that_cannot_be_used(run, save_own, task, words):
    refused(run("predict", "--adapter", save_own(task), "--text", "a"), "own", *words)


@pytest.mark.filterwarnings("default")
def test_a_language_model_s_adapter_says_how_it_was_read(run, tmp_path):
    model = make_decoder(tmp_path / "llama")
    texts = tmp_path / "chats.jsonl"
    chat = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3 w4"}]
    texts.write_text("\n".join([json.dumps({"messages": chat})] * 12))
    words = ("train", "--model", model, "--data", texts, *FLAGS, "--max-steps", 2)
    assert run(*words, "--no-packing", "--output", tmp_path / "run")[0] == 0
    alone = shutil.copytree(tmp_path / "run" / "adapter", tmp_path / "alone")
    task = json.loads((alone / "lntune.json").read_text())["task"]
    assert task["task"] == "causal_lm"
    assert (task["form"], task["packing"], task["max_length"]) == ("messages", False, LENGTH)
    outcomes = [
        run("evaluate", *where, "--data", texts)
        for where in (("--run", tmp_path / "run"), ("--adapter", alone))
    ]
    # The lines of progress depend on how fast the machine is.
    figures = [[line for line in out.splitlines() if "loss" in line] for _, out, _ in outcomes]
    assert figures[0] == figures[1] != []
    assert [code for code, *_ in outcomes] == [0, 0]
    prompt = ("--prompt", DECODER_WORDS[1], "--max-new-tokens", 2)
    code, _, complaint = run("generate", "--adapter", alone, *prompt, "--chat")  # finds its base
    assert (code, complaint) == (0, "")
    refused(run("predict", "--adapter", alone, "--text", "a"), "a language model", "evaluate")
    assert "--chat puts them into" in run("generate", "--adapter", alone, *prompt)[2]


def test_the_model_s_files_say_how_a_classifier_pools(run, model_directory, table, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(model_directory, model)
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    words = ["--data", table, "--max-steps", 2, "--buckets", 1]
    code, _, said = run("train", "--model", model, *words, "--output", tmp_path / "follows")
    assert code == 0, said
    assert "pooling: mean, as the model's files say" in run.notes
    words += ["--pooling", "mean"]
    code, _, said = run("train", "--model", model, *words, "--output", tmp_path / "asked")
    assert code == 0, said
    assert "as the model's files say" not in run.notes
    for name in ("follows", "asked"):
        adapter = tmp_path / name / "adapter"
        assert lnt.load_adapter(adapter).task["pooling"] == "mean"
    follows, asked = (
        read_lines(run("predict", "--run", tmp_path / name, "--text", *TEXTS))
        for name in ("follows", "asked")
    )
    assert follows == asked
    code, _, said = run("merge", "--adapter", adapter, "--output", tmp_path / "merged")
    assert code == 2
    assert "reads the mean over tokens" in said


def test_an_older_record_means_the_architecture_s_own(run, make_alone, model_directory, tmp_path):
    """What the model's files say was not asked when it was written."""
    _, alone = make_alone("default")
    loaded = lnt.load_adapter(alone)
    assert loaded.task["pooling"] == "own"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FreshWeightsWarning)
        base = lnt.models.from_pretrained(model_directory, "SEQ_CLS", num_labels=2).params
    older = {**loaded.task, "pooling": "default"}
    place = tmp_path / "older"
    lnt.save_adapter(place, loaded.trainable, loaded.config, base=base, task=older)
    found, expected = (
        read_lines(run("predict", "--adapter", path, "--text", *TEXTS))
        for path in (tmp_path / "older", alone)
    )
    assert found == expected


def test_a_run_and_an_adapter_together_are_refused(run, make_run, table):
    """Else the labels, pooling and length of the one would be taken for the other."""
    one = make_run("mean")
    other = make_run("default")
    for words in (("evaluate", "--data", table), ("predict", "--text", "good")):
        code, _, complaint = run(*words, "--run", one, "--adapter", other / "adapter")
        assert code == 2
        assert "give --run, an output directory" in complaint
        assert "or --adapter, one of them" in complaint
