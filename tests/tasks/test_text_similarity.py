"""`train --task similarity`: embeddings of pairs and triplets, from the table to `predict`."""

import json
import random

import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax import tasks, trainer
from lntune_jax.data.batches import PlannedBatch
from lntune_jax.data.examples import EncodedExamples, assemble_examples, read_examples
from lntune_jax.tasks import text_similarity
from lntune_jax.tasks.embeddings import make_embed, measure
from lntune_jax.tasks.scores import correlate, rank
from tests.support.runs import check, same_adapter, without_times

STEPS = ("--batch-size", "8", "--learning-rate", "0.02", "--epochs", "1", "--buckets", "2")


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """60 rows of each form; texts of one kind share a word."""
    draw, directory = random.Random(0), tmp_path_factory.mktemp("similar")

    def text(kind):
        rest = [f"word{draw.randrange(20)}" for _ in range(draw.randint(1, 3))]
        return " ".join([kind] * draw.randint(4, 9) + rest)

    rows = {"scored": [], "pairs": [], "triplets": []}
    for number in range(60):
        one, other = ("good", "bad")[:: 1 if number % 4 < 2 else -1]
        same = number % 2 == 0
        rows["scored"].append(
            {"sentence1": text(one), "sentence2": text(one if same else other), "score": 5.0 * same}
        )
        rows["pairs"].append({"anchor": text(one), "positive": text(one)})
        rows["triplets"].append({**rows["pairs"][-1], "negative": text(other)})
    paths = {form: directory / f"{form}.jsonl" for form in rows}
    for form, path in paths.items():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[form]))
    return paths


@pytest.fixture(scope="session")
def words(model_directory, tables):
    return ("train", "--task", "similarity", "--model", model_directory, *STEPS)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, words, tables):
    from lntune_jax.cli import main

    output = tmp_path_factory.mktemp("runs") / "scored"
    more = ("--data", tables["scored"], "--output", output, "--eval-every", "3", "--dropout")
    assert main([str(word) for word in (*words, *more)]) == 0
    return output


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("scored", ["spearman", "pearson"]),
        ("pairs", ["accuracy_at_1"]),
        ("triplets", ["accuracy_at_1", "triplet_accuracy"]),
    ],
)
def test_each_form_trains_norms_alone_and_improves(model_directory, tables, form, names):
    options = tasks.TaskOptions(str(model_directory), tables[form], batch_size=8)
    said = []
    (task,) = text_similarity.prepare(options, text_similarity.read(options), said.append)
    assert [metric.name for metric in task.metrics] == names
    assert task.evaluates_first
    assert any("pooling: mean" in line for line in said)
    assert any(f"54 to train on ({form}), 6 to evaluate on ({form})" in line for line in said)
    recipe = trainer.Recipe(batch_size=8, learning_rate=0.05, epochs=8, best_by="loss")
    result = trainer.fit(task, recipe)
    assert set(result.metrics) == {"loss", *names}
    assert result.history[0].step == 0
    assert result.metrics["loss"] < 0.9 * result.history[0].figures["loss"]
    assert all("LayerNorm" in path for path in result.adapter.trainable)
    assert result.adapter.config.modules_to_save is None


def test_the_loss_of_scored_pairs_by_hand(model_directory, tables):
    task, batch, first, second = _embed_batch(model_directory, tables["scored"])
    expected = np.square((first * second).sum(axis=1) - batch["scores"][:3]).mean()
    loss = task.loss_fn()(task.params, batch)
    assert float(loss.weight) == 3
    assert float(loss.total) / 3 == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", ["pairs", "triplets"])
def test_the_ranking_loss_by_hand(model_directory, tables, form):
    """Rows that only fill the batch are no candidates."""
    task, batch, anchors, *others = _embed_batch(model_directory, tables[form])
    logits = 20 * anchors @ np.concatenate(others).T
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -np.log(np.diag(shares)).mean()
    loss = task.loss_fn()(task.params, batch)
    assert float(loss.total) / float(loss.weight) == pytest.approx(expected, rel=1e-4)


def _embed_batch(model_directory, path):
    """A batch of five rows of which three are real, and the real texts' vectors."""
    options = tasks.TaskOptions(str(model_directory), path, batch_size=5)
    (task,) = text_similarity.prepare(options, text_similarity.read(options))
    batch, _ = task.assemble(PlannedBatch(np.array([4, 1, 7]), 16), 5)
    embed = make_embed(task.model.apply, "mean")
    vectors = [
        np.asarray(embed(task.params, batch["input_ids"][:3, at], batch["attention_mask"][:3, at]))
        for at in range(batch["input_ids"].shape[1])
    ]
    return task, batch, *(vector.astype(np.float64) for vector in vectors)


def test_a_batch_of_nothing_but_filling_has_a_finite_loss_and_gradient(model_directory, tables):
    """As a microbatch of --gradient-accumulation may be."""
    task, batch, *_ = _embed_batch(model_directory, tables["pairs"])
    batch = {**batch, "weights": np.zeros(5, np.float32)}
    trainable, frozen = lnt.partition_params(task.params, task.config)
    loss_fn = task.loss_fn()

    def total(params, batch):
        return loss_fn(params, batch).total

    loss, gradient = lnt.value_and_grad(total)(trainable, frozen, batch)
    assert float(loss) == 0
    assert all(np.all(np.asarray(leaf) == 0) for leaf in gradient.values())


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embeddings_have_length_1_and_pool_as_said(model_directory, pooling):
    from lntune_jax import models

    model = models.from_pretrained(model_directory)
    ids, mask = np.array([[2, 5, 8, 3, 0, 0]]), np.array([[1, 1, 1, 1, 0, 0]])
    found = np.asarray(make_embed(model.apply, pooling)(model.params, ids, mask))
    hidden = np.asarray(model.apply(model.params, ids, attention_mask=mask).last_hidden_state)
    expected = hidden[0, 0] if pooling == "cls" else hidden[0, :4].mean(axis=0)
    np.testing.assert_allclose(found[0], expected / np.linalg.norm(expected), rtol=1e-4, atol=1e-6)


def test_figures_of_pairs_and_triplets_by_hand():
    # Texts as unit vectors in a plane, by their angle. Row 1's positive is nearer to row 0's.
    degrees = np.array([[0, 10, 30], [12, 40, 90], [180, 170, 175]])
    angles = np.deg2rad(degrees)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    tokens = tuple(tuple(np.array([each]) for each in row) for row in degrees)
    rows = EncodedExamples("triplets", tokens, np.zeros(3), np.arange(3))
    found = measure(rows, vectors)
    assert found["accuracy_at_1"] == pytest.approx(2 / 3)
    assert found["triplet_accuracy"] == pytest.approx(2 / 3)  # Row 2's negative is nearer.
    cosines = np.cos(angles[:, 0, None] - angles[:, 1:].T.reshape(1, -1))
    losses = np.log(np.exp(20 * cosines).sum(axis=1)) - 20 * np.diag(cosines)
    assert found["loss"] == pytest.approx(losses.mean())


def test_a_text_that_is_two_rows_positive_is_right_for_both():
    tokens = tuple((np.array([row]), np.array([7])) for row in range(2))
    vectors = np.array([[[1.0, 0], [0.6, 0.8]], [[0.0, 1], [0.6, 0.8]]])
    rows = EncodedExamples("pairs", tokens, np.zeros(2), np.arange(2))
    assert measure(rows, vectors)["accuracy_at_1"] == 1


def test_correlations_are_those_of_scipy():
    from scipy import stats

    draw = np.random.default_rng(0)
    left, right = draw.normal(size=200).round(1), draw.integers(0, 6, 200) / 5
    np.testing.assert_array_equal(rank(left), stats.rankdata(left))
    assert correlate(left, right) == pytest.approx(stats.pearsonr(left, right).statistic)
    spearman = stats.spearmanr(left, right).statistic
    assert correlate(rank(left), rank(right)) == pytest.approx(spearman)


def test_correlations_of_small_cases_by_hand():
    assert rank(np.array([3.0, 1.0, 3.0, 3.0, 9.0])).tolist() == [3, 1, 3, 3, 5]
    # Differences of the ranks 1, 1, 0: 1 - 6 * 2 / (3 * 8).
    assert correlate(np.array([1.0, 2, 3]), np.array([2.0, 1, 3])) == pytest.approx(0.5)
    assert correlate(np.array([2.0, 2, 2]), np.array([2.0, 1, 3])) == 0


def test_evaluate_measures_what_training_measured(run, finished, tables, tmp_path):
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    evaluations = [row for row in rows if row["split"] == "eval"]
    assert evaluations[0]["step"] == 0
    summary = json.loads((finished / "summary.json").read_text())
    options = tasks.TaskOptions("unused", tables["scored"])
    ((_, evaluation),) = text_similarity.read(options)
    held_out = tmp_path / "held-out.jsonl"
    lines = zip(evaluation.texts, evaluation.scores, strict=True)
    names = ("sentence1", "sentence2", "score")
    held_out.write_text(
        "".join(json.dumps(dict(zip(names, (*t, s), strict=True))) + "\n" for t, s in lines)
    )
    report = tmp_path / "report.json"
    code, printed, complaint = run(
        "evaluate", "--run", finished, "--data", held_out, "--output", report
    )
    assert (code, complaint) == (0, "")
    measured = json.loads(report.read_text())
    for name in ("spearman", "pearson", "loss"):
        assert measured[name] == pytest.approx(summary["best"][name], abs=1e-5)
        assert measured[f"base_{name}"] == pytest.approx(evaluations[0][name], abs=1e-5)
    assert f"Spearman correlation {measured['spearman']:.4f}" in printed
    assert f"(without the adapter: {measured['base_spearman']:.4f})" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_a_run_of_one_form_is_evaluated_on_another(run, finished, tables):
    code, printed, complaint = run("evaluate", "--run", finished, "--data", tables["triplets"])
    assert (code, complaint) == (0, "")
    assert "accuracy at 1" in printed
    assert "triplet accuracy" in printed


def test_predict_gives_embeddings(run, finished, tables, tmp_path):
    texts = ("good word1", "good word2 word3", "bad word1")
    code, printed, complaint = run("predict", "--run", finished, "--text", *texts)
    assert (code, complaint) == (0, "")
    rows = [json.loads(line) for line in printed.splitlines()]
    assert [row["text"] for row in rows] == list(texts)
    vectors = np.array([row["embedding"] for row in rows])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    data, output = tmp_path / "texts.csv", tmp_path / "vectors.jsonl"
    data.write_text('text\ngood word1\n" "\nbad word1\n')
    code, printed, _ = run("predict", "--run", finished, "--data", data, "--output", output)
    assert (code, "2 predictions in" in printed, "1 rows marked as bad" in printed) == (0, 1, 1)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    np.testing.assert_allclose(rows[0]["embedding"], vectors[0], atol=1e-5)
    assert "line 3: no text" in rows[1]["error"]
    output = tmp_path / "vectors.csv"
    check(run("predict", "--run", finished, "--text", "a", "--output", output), "end in .jsonl")


def test_a_stopped_run_goes_on_bit_for_bit(run, words, tables, finished, tmp_path):
    more = ("--data", tables["scored"], "--output", tmp_path / "run", "--eval-every", "3")
    assert run(*words, *more, "--dropout", "--stop-after-steps", "4")[0] == 0
    assert run(*words, *more, "--dropout", "--resume")[0] == 0
    assert same_adapter(tmp_path / "run", finished)
    assert without_times(tmp_path / "run") == without_times(finished)


def test_a_sweep_keeps_the_best(run, words, tables, tmp_path):
    more = ("--data", tables["triplets"], "--output", tmp_path / "run", "--max-steps", "3")
    code, _, complaint = run(*words, *more, "--sweep", "learning_rate=1e-3,0.02", "--seeds", "2")
    assert (code, complaint) == (0, "")
    content = json.loads((tmp_path / "run" / "sweep.json").read_text())
    assert content["metric"] == "accuracy_at_1"
    best = max(row["accuracy_at_1"] for row in content["trials"])
    assert content["trials"][0]["accuracy_at_1"] == best
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["best"]["accuracy_at_1"] == best


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a,b\nx,y\n", ["none of the columns", "sentence1, sentence2, score"]),
        ("anchor,other\nx,y\n", ["'anchor'", "anchor, positive"]),
        ("sentence1,sentence2,score,anchor,positive\na,b,1,a,b\n", ["scored and pairs"]),
        (
            "sentence1,sentence2,score\n,b,1\na,b,nan\na,b,-1\na,b,high\na,b,1\n",
            ["4 bad rows", "line 2: no text in column 'sentence1'", "line 3: no score", "'-1'"],
        ),
        ("sentence1,sentence2,score\n" + "a,b,1\n" * 30, ["have one score (1)", "--eval-data"]),
        ("anchor,positive\na,b\n", ["one row", "--eval-data"]),
    ],
)
def test_faults_of_a_table_are_said(run, words, tmp_path, content, expected):
    data = tmp_path / "a.csv"
    data.write_text(content)
    check(run(*words, "--data", data, "--output", tmp_path / "run"), str(data), *expected)


def test_flags_of_other_tasks_are_refused(run, words, tables, finished, tmp_path):
    paths = ("--data", tables["scored"], "--output", tmp_path / "run")
    check(run(*words, *paths, "--text-column", "a"), "--text-column", "sentence1")
    check(run(*words, *paths, "--pooling", "own"), "--pooling own", "mean or cls")
    check(run(*words, *paths, "--best-by", "accuracy"), "--best-by is", "spearman")
    check(run(*words, *paths, "--best-by", "accuracy_at_1"), "accuracy_at_1", "spearman")
    more = ("--data", tables["scored"], "--more-data", tables["pairs"])
    check(run(*words, *more, "--output", tmp_path / "run"), "one form", "pairs")
    given = ("evaluate", "--run", finished, "--data", tables["scored"])
    check(run(*given, "--labels", "a", "b"), "--labels", "similarity")
    check(run(*given, "--text-column", "a"), "--text-column", "sentence1")


def test_training_on_pairs_may_be_measured_by_scores(model_directory, tables):
    """And scores of any range are divided by the largest, which is said."""
    columns = tasks.Columns(eval_data=tables["scored"])
    options = tasks.TaskOptions(str(model_directory), tables["pairs"], columns=columns)
    said = []
    (task,) = text_similarity.prepare(options, text_similarity.read(options), said.append)
    assert [metric.name for metric in task.metrics] == ["spearman", "pearson"]
    assert sorted(set(task.evaluation.scores)) == [0, 1]
    assert "scores: from 0 to 5, divided by 5" in said
    assert task.record["score_scale"] == 5


def test_a_batch_holds_each_text_of_its_rows():
    tokens = ((np.array([1, 2]), np.array([3])), (np.array([4]), np.array([5, 6, 7])))
    rows = EncodedExamples("pairs", tokens, np.zeros(2), np.array([2, 3]))
    batch = assemble_examples(PlannedBatch(np.array([1]), 4), rows, (0, 2), padding=9)
    assert batch["input_ids"][0].tolist() == [[4, 9, 9, 9], [5, 6, 7, 9]]
    assert batch["attention_mask"][0].tolist() == [[1, 0, 0, 0], [1, 1, 1, 0]]
    assert batch["weights"].tolist() == [1, 0]
    assert rows.lengths.tolist() == [2, 3]
    assert rows.list_numbers(np.array([1])) == [3]


def test_bad_rows_are_left_out_on_request(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"anchor": "a", "positive": 3}, {"anchor": "a", "positive": "b"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match="line 1: int, not text, in column 'positive'; left out"):
        examples = read_examples(path, bad_rows="skip")
    assert examples.texts == (("a", "b"),)
    assert examples.places.tolist() == [2]


def test_parts_of_a_model_that_are_not_run_are_said(model_directory, tables, tmp_path):
    import shutil

    directory = shutil.copytree(model_directory, tmp_path / "model")
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    start = "sentence_transformers.models."
    parts = [{"type": start + kind, "path": f"{n}_{kind}"} for n, kind in enumerate(kinds)]
    (directory / "modules.json").write_text(json.dumps(parts))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    options = tasks.TaskOptions(str(directory), tables["pairs"])
    with pytest.warns(UserWarning, match="Dense"):
        (task,) = text_similarity.prepare(options, text_similarity.read(options))
    assert task.record["pooling"] == "cls"
