"""Language models from the command line: a tiny Llama, and a tokenizer of words made here."""

import json
import random

import jax
import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.data.documents import read_documents
from lntune_jax.data.encode import load_tokenizer
from lntune_jax.data.packing import assemble_language, fit_length, pack, separate
from lntune_jax.data.tokens import IGNORED, encode_documents
from lntune_jax.errors import DataError
from lntune_jax.models import from_pretrained
from lntune_jax.tasks.causal_lm import MeanLoss
from lntune_jax.trainer.callbacks import read_metrics
from tests.support.runs import (
    FLAGS,
    LENGTH,
    SPECIAL,
    WORDS,
    check,
    make_decoder,
    same_adapter,
    without_times,
)

END, ASSISTANT = SPECIAL.index("</s>"), SPECIAL.index("<assistant>")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return make_decoder(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Forty documents in which a word is nearly always followed by the next one."""
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    draw = random.Random(0)
    documents = []
    for _ in range(40):
        start, count = draw.randrange(40), draw.randint(3, 24)
        documents.append(" ".join(WORDS[(start + step) % 40] for step in range(count)))
    path.write_text("\n\n".join(documents) + "\n")
    return path


@pytest.fixture(scope="module")
def words(decoder, texts):
    return ("train", "--model", decoder, "--data", texts, *FLAGS, "--dropout")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, words):
    from lntune_jax.cli import main

    output = tmp_path_factory.mktemp("runs") / "whole"
    assert main([str(word) for word in (*words, "--output", output)]) == 0
    return output


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def encoded_from(decoder, path, form="auto"):
    return encode_documents(load_tokenizer(str(decoder)), read_documents(path, form, "text"), 60)


def test_perplexity_falls_and_the_run_leaves_its_files(finished):
    assert {path.name for path in finished.iterdir()} == {
        "adapter",
        "checkpoints",
        "curves.png",
        "metrics.jsonl",
        "run.yaml",
        "settings.json",
        "summary.json",
        "tensorboard",
    }
    evaluations = [x for x in read_metrics(finished / "metrics.jsonl") if x["split"] == "eval"]
    assert evaluations[0]["step"] == 0
    assert set(evaluations[0]) == {"split", "step", "loss", "perplexity"}
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["first"]["perplexity"] == evaluations[0]["perplexity"]
    assert summary["best"]["perplexity"] < 0.8 * summary["first"]["perplexity"]
    assert summary["best"]["perplexity"] == pytest.approx(np.exp(summary["best"]["loss"]))
    assert "accuracy" not in summary["best"]


def test_only_norms_train(finished):
    leaves, config = lnt.load_adapter(finished / "adapter")
    assert config.task_type == "CAUSAL_LM"
    assert len(leaves) == 2 * 2 + 1
    assert all(path.endswith("norm.scale") for path in leaves)


def test_a_resumed_run_gives_the_same_bits(run, finished, words, tmp_path):
    output = tmp_path / "parts"
    for stop in (2, 3, 100):
        code, _, complaint = run(*words, "--output", output, "--resume", "--stop-after-steps", stop)
        assert (code, complaint) == (0, "")
        assert ("go on with --resume" in run.notes) == (stop != 100)
    assert same_adapter(finished, output)
    assert without_times(finished) == without_times(output)


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    run, finished, words, tmp_path, monkeypatch
):
    from lntune_jax.trainer import recorder

    def die(self, *_):
        raise KeyboardInterrupt

    output = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(recorder.Recorder, "keep", die)
        assert run(*words, "--output", output)[0] == 130
    assert run(*words, "--output", output, "--resume")[0] == 0
    assert without_times(finished) == without_times(output)


def test_evaluate_measures_what_training_measured(run, finished, words, texts, tmp_path):
    """On the documents that training held out, written to a file of their own."""
    from lntune_jax.data.documents import split_documents

    _, held_out = split_documents(read_documents(texts, "auto", "text"), 0.1, 0)
    data, report = tmp_path / "held-out.txt", tmp_path / "report.json"
    data.write_text("\n\n".join(held_out.values))
    words = ("evaluate", "--run", finished, "--data", data, "--output", report)
    code, printed, complaint = run(*words)
    assert (code, complaint) == (0, "")
    measured = json.loads(report.read_text())
    summary = json.loads((finished / "summary.json").read_text())
    assert measured["perplexity"] == pytest.approx(summary["best"]["perplexity"], rel=1e-5)
    assert measured["base_perplexity"] == pytest.approx(summary["first"]["perplexity"], rel=1e-5)
    assert f"perplexity {measured['perplexity']:.4f}" in printed


def test_a_run_is_converted_to_peft_and_merged(run, finished, decoder, tmp_path):
    code, printed, complaint = run("convert", finished, tmp_path / "peft")
    assert (code, complaint) == (0, "")
    assert "5 trained leaves" in printed
    words = ("--model", decoder, "--adapter", finished, "--output", tmp_path / "merged")
    code, _, complaint = run("merge", *words)
    assert (code, complaint) == (0, "")
    tuned, config = lnt.load_adapter(finished / "adapter")
    merged = from_pretrained(tmp_path / "merged", task="CAUSAL_LM")
    leaves, _ = lnt.partition_params(merged.params, config)
    assert leaves.keys() == tuned.keys()
    for path in tuned:
        # Rounded once, to the type of the checkpoint's weights.
        assert np.allclose(leaves[path], tuned[path], rtol=2**-8)


def test_predict_says_that_a_language_model_has_no_labels(run, finished):
    check(run("predict", "--run", finished, "--text", "w1"), "does not label texts")


def test_half_precision_trains_in_float32(run, words, tmp_path):
    output = tmp_path / "half"
    flags = ("--dtype", "bfloat16", "--max-steps", "2", "--no-packing", "--buckets", "1")
    code, _, complaint = run(*words, "--output", output, *flags)
    assert (code, complaint) == (0, "")
    leaves, _ = lnt.load_adapter(output / "adapter")
    assert {str(leaf.dtype) for leaf in leaves.values()} == {"float32"}


def test_a_text_is_predicted_whole_but_for_its_first_token(decoder, texts):
    encoded = encoded_from(decoder, texts)
    assert all(each.tokens[-1] == END for each in encoded)
    assert all(each.targets == len(each.tokens) - 1 for each in encoded)
    for length in (2, 5, LENGTH):
        fitting = fit_length(encoded, "text", length)
        assert fitting.split == sum(len(each.tokens) > length for each in encoded)
        assert fitting.dropped == fitting.cut == 0
        assert max(len(part.tokens) for part in fitting.parts) <= length
        assert sum(part.targets for part in fitting.parts) == sum(x.targets for x in encoded)


def test_packing_equals_separate_rows(decoder, texts):
    parts = fit_length(encoded_from(decoder, texts), "text", LENGTH).parts
    packed, apart = pack(parts, LENGTH), separate(parts)
    assert len(packed.tokens) < 0.8 * len(apart.tokens)
    assert packed.targets == apart.targets
    assert max(packed.lengths) <= LENGTH
    assert sorted(np.concatenate(packed.tokens)) == sorted(np.concatenate(apart.tokens))
    model = from_pretrained(decoder, task="CAUSAL_LM")
    halves = lnt.partition_params(model.params, lnt.LNTuningConfig())
    losses = [MeanLoss(model).measure(*halves, rows, 4, (LENGTH,), 0) for rows in (packed, apart)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-6)


def test_completions_alone_are_predicted(decoder, tmp_path):
    rows = [
        {"prompt": "w0 w1 w2", "completion": "w3 w4"},
        {"prompt": "", "completion": "w5 w6"},
        {"prompt": "w0 " * 20, "completion": "w7"},
        {"prompt": "w0 " * 14, "completion": "w7 w8 w9"},
    ]
    encoded = encoded_from(decoder, write_rows(tmp_path / "pairs.jsonl", rows))
    # The empty prompt's completion begins its row: its first token has nothing before it.
    assert [each.targets for each in encoded] == [3, 2, 2, 4]
    first = encoded[0]
    assert first.labels.tolist() == [IGNORED] * 3 + first.tokens[3:].tolist()
    fitting = fit_length(encoded, "completion", LENGTH)
    assert (fitting.split, fitting.cut, fitting.dropped) == (0, 2, 1)
    assert [part.targets for part in fitting.parts] == [3, 2, 2]


def test_what_the_assistant_says_is_predicted(decoder, tmp_path):
    chat = [
        {"role": "user", "content": "w0 w1"},
        {"role": "assistant", "content": "w2 w3 w4"},
        {"role": "user", "content": "w5"},
        {"role": "assistant", "content": "w6"},
    ]
    (each,) = encoded_from(decoder, write_rows(tmp_path / "c.jsonl", [{"messages": chat}]))
    predicted = each.tokens[each.labels != IGNORED]
    names = (SPECIAL + WORDS).__getitem__
    assert [names(token) for token in predicted] == ["w2", "w3", "w4", "</s>", "w6", "</s>"]
    assert ASSISTANT in each.tokens


def test_a_template_that_writes_no_contents_is_refused(decoder, tmp_path):
    changing = "{% for message in messages %}{{ messages | length }} {% endfor %}"
    changing = changing.replace("{{ messages | length }}", "w{{ messages | length }}")
    directory = make_decoder(tmp_path / "changing", changing)
    chat = [{"role": "user", "content": "w0"}, {"role": "assistant", "content": "w1"}]
    data = write_rows(tmp_path / "chat.jsonl", [{"messages": chat}])
    with pytest.raises(DataError, match="changes the last answer of row 1"):
        encoded_from(directory, data)


@pytest.mark.parametrize("form", ["completion", "messages"])
def test_every_form_trains(run, decoder, tmp_path, form):
    pairs = [(f"w{number} w1", f"w{number} w2 w3") for number in range(12)]
    if form == "completion":
        rows = [{"prompt": prompt, "completion": text} for prompt, text in pairs]
    else:
        roles = ("user", "assistant")
        rows = [
            {"messages": [{"role": r, "content": c} for r, c in zip(roles, pair, strict=True)]}
            for pair in pairs
        ]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    words = ("--model", decoder, "--data", data, "--output", tmp_path / "out", *FLAGS)
    code, printed, complaint = run("train", *words, "--max-steps", "1")
    assert (code, complaint) == (0, "")
    assert "to train on: 11 documents" in run.notes
    # Three words and the end of the turn, for each document.
    assert "44 of them predicted" in run.notes
    code, printed, _ = run("evaluate", "--run", tmp_path / "out", "--data", data)
    assert code == 0
    assert "48 tokens predicted" in printed
    # Another kind of file: there is no --form to blame.
    other = tmp_path / "other.txt"
    other.write_text("w1 w2")
    outcome = run("evaluate", "--run", tmp_path / "out", "--data", other)
    check(outcome, f"the form '{form}' needs a table")
    assert "--form" not in outcome[2]


def test_padding_and_missing_rows_are_not_predicted(decoder, texts):
    from lntune_jax.data.batches import PlannedBatch

    parts = fit_length(encoded_from(decoder, texts), "text", LENGTH).parts
    for rows in (pack(parts, LENGTH), separate(parts)):
        planned = PlannedBatch(np.array([0, 1]), LENGTH)
        batch = assemble_language(planned, rows, 4, padding=0)
        assert ("segment_ids" in batch) == (rows.segments is not None)
        assert {array.shape for array in jax.tree.leaves(batch)} == {(4, LENGTH)}
        counted = (batch["labels"] != IGNORED).sum(axis=1)
        assert counted.tolist() == [*((rows.labels[n] != IGNORED).sum() for n in (0, 1)), 0, 0]


@pytest.mark.parametrize(
    ("name", "content", "fragments"),
    [
        ("a.txt", "", ["is empty"]),
        ("a.txt", " \n\n \n", ["is empty"]),
        ("a.txt", "w1 w2\nw3", ["one document", "--eval-data"]),
        ("a.csv", "", ["is empty"]),
        ("a.csv", "text\n", ["no rows"]),
        ("a.csv", "body\nw1\n", ["none of the columns", "'body'", "--text-column"]),
        ("a.csv", "prompt\nw1\n", ["no column 'completion'"]),
        ("a.csv", "prompt,completion\nw1,\n", ["line 2: no text in column 'completion'"]),
        ("a.csv", "text,prompt,completion\na,b,c\n", ["text and completion", "--form"]),
        ("a.csv", "messages\na\n", [".jsonl or .parquet"]),
        ("a.jsonl", '{"messages": "w1"}\n', ["holds str in row 1"]),
        ("a.jsonl", '{"messages": [{"role": "user"}]}\n', ["message 1 of row 1", "content"]),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "a"}]}\n', ["'assistant'"]),
        ("a.doc", "w1", ["ends in .doc"]),
    ],
)
def test_faulty_data(run, decoder, tmp_path, name, content, fragments):
    path = tmp_path / name
    path.write_text(content)
    words = ("--model", decoder, "--data", path, "--output", tmp_path / "out", *FLAGS)
    check(run("train", *words), name, *fragments)
    assert not (tmp_path / "out").exists()


def test_long_rows_are_cut_or_split_and_that_is_said(run, decoder, texts, tmp_path):
    words = ("train", "--model", decoder, *FLAGS, "--max-steps", "1", "--output", tmp_path / "out")
    code, _, _ = run(*words, "--data", texts)
    assert code == 0
    assert f"are longer than {LENGTH} tokens and were split" in run.notes
    rows = [{"prompt": "w1 " * 20, "completion": "w2"}] * 3
    data = write_rows(tmp_path / "long.jsonl", rows)
    check(run(*words, "--overwrite", "--data", data), "no document has one to predict")


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (("--pooling", "mean"), "--pooling does not go with --task causal_lm"),
        (("--label-column", "stars"), "--label-column goes with --task seq_cls"),
        (("--best-by", "accuracy"), "--best-by is 'accuracy'; this task measures perplexity, loss"),
        (("--task", "seq_cls", "--no-packing"), "go with --task causal_lm"),
        (("--task", "seq_cls", "--best-by", "perplexity"), "measures accuracy, macro_f1, loss"),
        (("--form", "messages"), "the form 'messages' needs a table"),
    ],
)
def test_flags_of_the_other_task(run, words, tmp_path, flags, fragment):
    check(run(*words, "--output", tmp_path / "out", *flags), fragment)


def test_a_tokenizer_without_a_template_cannot_read_chats(decoder, tmp_path):
    directory = make_decoder(tmp_path / "plain", None)
    chat = [{"role": "assistant", "content": "w1"}]
    data = write_rows(tmp_path / "chat.jsonl", [{"messages": chat}])
    with pytest.raises(DataError, match="has no chat template"):
        encoded_from(directory, data)


@pytest.mark.filterwarnings("default:no evaluation was better")
def test_a_run_that_made_nothing_better_says_so(run, decoder, texts, tmp_path):
    """At this learning rate the first step ruins the model: the untouched base is kept."""
    words = ("train", "--model", decoder, "--data", texts, *FLAGS, "--output", tmp_path / "out")
    code, _, complaint = run(*words, "--learning-rate", "30", "--max-steps", "2")
    assert code == 0
    assert "warning: no evaluation was better than the untouched base" in complaint
    assert "lower the learning rate, or train longer" in complaint
    assert complaint.count("\n") == 1
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["best"]["step"] == 0


@pytest.mark.parametrize("form", ["text", "messages"])
def test_the_summary_says_how_to_use_the_adapter(run, decoder, texts, tmp_path, monkeypatch, form):
    """The words of the summary's last line run as they stand."""
    monkeypatch.chdir(tmp_path)
    chat = [{"role": "user", "content": "w0"}, {"role": "assistant", "content": "w1"}]
    data = write_rows(tmp_path / "chats.jsonl", [{"messages": chat}] * 4)
    data = texts if form == "text" else data
    words = ("train", "--model", decoder, "--data", data, "--output", "out", *FLAGS)
    code, printed, _ = run(*words, "--max-steps", "1")
    assert code == 0
    said = printed[printed.index("use it") :].replace("│", " ").split()
    said = said[said.index("generate") : said.index("...")]
    assert said == [
        "generate",
        "--run",
        "out",
        *["--chat"] * (form == "messages"),
        "--prompt",
    ]
    assert run(*said, "w0", "--max-new-tokens", 2)[::2] == (0, "")
