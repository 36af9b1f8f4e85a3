"""Labels for words: reading, pieces, entity F1, a run from end to end."""

import json
import random

import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.data.encode import load_tokenizer
from lntune_jax.data.pieces import describe_losses, encode_sentences
from lntune_jax.data.sentences import read_sentences
from lntune_jax.data.tokens import IGNORED
from lntune_jax.tasks.entities import list_entities, score_entities
from lntune_jax.trainer.callbacks import read_metrics
from tests.support.outcomes import refused
from tests.support.runs import leaves, without_times

FLAGS = ("--task", "token_cls", "--batch-size", 8, "--buckets", 1)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """40 rows: "good" is a person, also of two words, "bad" a place."""
    draw, rows = random.Random(0), []
    for _ in range(40):
        words, tags = ["word0"], ["O"]
        while len(words) < 10:
            kind = draw.choice(("good", "bad", "word"))
            if kind == "good":
                words += ["good", "good"]
                tags += ["B-PER", "I-PER"]
            else:
                words.append("bad" if kind == "bad" else f"word{draw.randint(0, 19)}")
                tags.append("B-LOC" if kind == "bad" else "O")
        rows.append(json.dumps({"tokens": words, "ner_tags": tags}))
    path = tmp_path_factory.mktemp("sentences") / "train.jsonl"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model_directory, sentences):
    from lntune_jax.cli import main

    output = tmp_path_factory.mktemp("runs") / "run"
    words = ("train", "--model", model_directory, "--data", sentences, "--output", output, *FLAGS)
    words = (*words, "--learning-rate", 0.02, "--max-steps", 30, "--eval-every", 15)
    assert main([str(word) for word in words]) == 0
    return output


# By hand from seqeval's rules for the beginning and the end of a chunk, in its default mode.
@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
        ("B-PER B-PER I-PER", [("PER", 0, 0), ("PER", 1, 2)]),
        ("O I-PER I-PER O", [("PER", 1, 2)]),
        ("B-PER I-LOC I-LOC", [("PER", 0, 0), ("LOC", 1, 2)]),
        ("I-PER B-PER", [("PER", 0, 0), ("PER", 1, 1)]),
        # An I- behind an E- begins another entity of the same type.
        ("S-PER O B-LOC E-LOC I-LOC", [("PER", 0, 0), ("LOC", 2, 3), ("LOC", 4, 4)]),
        ("O O", []),
        ("B-A-B I-A-B", [("A-B", 0, 1)]),
        ("NOUN NOUN VERB", [("NOUN", 0, 1), ("VERB", 2, 2)]),
    ],
)
def test_entities_of_a_sentence(labels, expected):
    assert [tuple(each) for each in list_entities(labels.split())] == expected


def test_scores_of_the_example_in_seqeval_s_readme():
    true = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    whole, types = score_entities(true, predicted)
    assert (whole.precision, whole.recall, whole.f1) == (0.5, 0.5, 0.5)
    assert {name: each.f1 for name, each in types.items()} == {"MISC": 0.0, "PER": 1.0}
    # Nothing predicted is 0, and no division by it.
    assert score_entities([["B-X"]], [["O"]])[0].f1 == 0.0
    # An entity does not reach into the next sentence.
    assert score_entities([["B-X"], ["I-X"]], [["B-X"], ["I-X"]])[0].actual == 2


def test_forms_of_data(tmp_path):
    plain, tabbed, table = (tmp_path / name for name in ("a.conll", "b.txt", "c.jsonl"))
    plain.write_text("-DOCSTART- -X- O\n\nAda NNP B-PER\nsings VBZ O\n \n\nParis NNP B-LOC")
    tabbed.write_text("Ada Lovelace\tB-PER\nsings\tO\n\nParis\tB-LOC\n")
    table.write_text(
        '{"words": ["Ada", "sings"], "tags": [1, 0]}\n{"words": ["P"], "tags": [10]}\n'
    )
    one, other, lists = (read_sentences(path) for path in (plain, tabbed, table))
    assert one.words == (("Ada", "sings"), ("Paris",))
    assert one.labels == other.labels == (("B-PER", "O"), ("B-LOC",))
    assert (one.places, one.unit) == ((3, 7), "line")
    assert other.words[0] == ("Ada Lovelace", "sings")
    assert lists.labels == (("1", "0"), ("10",))
    assert lists.columns == ("words", "tags")


def test_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    columns = {"tokens": [["a", "b"]], "ner_tags": [["O", "B-X"]], "id": [1]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    found = read_sentences(tmp_path / "a.parquet")
    assert (found.labels, found.unit) == ((("O", "B-X"),), "row")


def test_all_bad_rows_are_said_at_once(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"tokens": ["a", "b"], "labels": ["O", "B-X"]},
        {"tokens": ["a", "b"], "labels": ["O"]},
        {"tokens": [], "labels": []},
        {"tokens": ["a"], "labels": [None]},
        {"tokens": "a b", "labels": ["O", "O"]},
        {"tokens": ["a", 3], "labels": ["O", "O"]},
        {"tokens": ["a"], "labels": [-100]},
        {"tokens": ["a"], "labels": "O"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no json\n")
    with pytest.raises(lnt.errors.DataError) as error:
        read_sentences(path)
    for part in (
        "8 bad rows",
        "line 2: 2 words but 1 labels",
        "line 3: no words",
        "lines 4, 7: no label for word 1",
        "line 5: str, not a list of words",
        "line 6: word 2 in column 'tokens' is int",
        "line 8: str, not a list of labels",
        "line 9: no JSON",
        "--skip-bad-rows",
    ):
        assert part in str(error.value)
    with pytest.warns(UserWarning, match="8 bad rows"):
        assert len(read_sentences(path, bad_rows="skip").words) == 1
    conll = tmp_path / "a.conll"
    conll.write_text("Ada B-PER\nsings\n\nParis X B-LOC\n\nRome B-LOC\n")
    with pytest.raises(lnt.errors.DataError, match="line 2: a word without a label; line 4: 3 col"):
        read_sentences(conll)


@pytest.mark.parametrize(
    ("name", "content", "flags", "said"),
    [
        ("a.csv", "tokens,labels\na,O\n", {}, "give .jsonl, .parquet or .conll"),
        ("a.jsonl", '{"x": ["a"], "labels": ["O"]}', {}, "no column 'tokens' or 'words' or 'text'"),
        ("a.jsonl", '{"tokens": ["a"], "x": ["O"]}', {"label_column": "y"}, "--label-column"),
        (
            "a.jsonl",
            '{"tokens": ["a"], "words": ["a"], "labels": ["O"]}',
            {},
            "'tokens' and 'words'; choose one with --text-column",
        ),
        ("a.conll", "\n\n", {}, "is empty"),
    ],
)
def test_files_that_are_refused(tmp_path, name, content, flags, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(lnt.errors.DataError) as error:
        read_sentences(tmp_path / name, **flags)
    assert said in str(error.value)


def test_the_first_piece_of_a_word_has_its_label(model_directory, tmp_path):
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((model_directory / name).read_bytes())
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngood\n##ly\nbad\n")
    tokenizer = load_tokenizer(str(tmp_path))
    words = ["goodly", "\u200b", "bad", "goodly", "bad"]
    whole, cut = (encode_sentences(tokenizer, [words], limit, 8)[0] for limit in (20, 6))
    assert whole.tokens.tolist() == [2, 5, 6, 7, 5, 6, 7, 3]
    assert whole.firsts.tolist() == [IGNORED, 0, IGNORED, 2, 3, IGNORED, 4, IGNORED]
    assert cut.firsts.tolist() == [IGNORED, 0, IGNORED, 2, 3, IGNORED]
    assert (whole.lost, cut.lost) == (0, 1)
    told = " ".join(describe_losses([cut], [5], 6))
    assert "1 row is longer than 6 tokens and cut: 1 of 5 words are lost" in told
    assert "1 word becomes no piece" in told


@pytest.mark.parametrize("kind", ["RobertaTokenizer", "PreTrainedTokenizerFast", "metaspace"])
def test_pieces_are_those_of_words_in_a_text(tmp_path, kind):
    """Of byte-level tokenizers a word without a blank before it has other pieces."""
    from tokenizers import ByteLevelBPETokenizer, SentencePieceBPETokenizer

    made = SentencePieceBPETokenizer() if kind == "metaspace" else ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made.train_from_iterator(["x good bad x good bad"] * 9, 300, 1, special_tokens=special)
    made.save(str(tmp_path / "tokenizer.json"))
    name = "PreTrainedTokenizerFast" if kind == "metaspace" else kind
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    tokenizer = load_tokenizer(str(tmp_path))
    found = encode_sentences(tokenizer, [["good", "bad"]], 20, 400)[0]
    in_text = tokenizer(" x good bad", add_special_tokens=False)["input_ids"][1:]
    assert found.tokens[found.firsts != IGNORED].tolist() == in_text
    assert len(in_text) == 2
    # An empty word has no piece.
    assert encode_sentences(tokenizer, [["", "bad"]], 20, 400)[0].firsts.max() == 1


def test_train_evaluate_predict(run, trained, sentences, tmp_path):
    assert json.loads((trained / "summary.json").read_text())["best"]["entity_f1"] >= 0
    losses = [line["loss"] for line in read_metrics(trained / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    figures = tmp_path / "figures.json"
    words = ("evaluate", "--run", trained, "--data", sentences, "--output", figures)
    code, printed, complaint = run(*words)
    assert (code, complaint) == (0, "")
    found = json.loads(figures.read_text())
    for part in (f"entity F1 {found['entity_f1']:.4f}", "token accuracy", "│ LOC", "│ PER"):
        assert part in printed
    code, printed, complaint = run("predict", "--run", trained, "--text", "good  word1", "bad")
    assert (code, complaint) == (0, "")
    one, other = (json.loads(line) for line in printed.splitlines())
    assert one["words"] == ["good", "word1"]
    assert len(one["labels"]) == 2
    assert {*one["labels"], *other["labels"]} <= {"B-PER", "I-PER", "B-LOC", "O"}


def test_figures_are_those_of_the_model_itself(run, trained, model_directory, sentences, tmp_path):
    """Labels, loss and F1 from logits computed here, row by row, without padding."""
    merged, figures = tmp_path / "merged", tmp_path / "figures.json"
    assert run("merge", "--adapter", trained, "--output", merged)[::2] == (0, "")
    fields = json.loads((merged / "config.json").read_text())
    names = ["B-LOC", "B-PER", "I-PER", "O"]
    assert fields["architectures"] == ["BertForTokenClassification"]
    assert fields["id2label"] == {str(number): name for number, name in enumerate(names)}
    model = lnt.models.from_pretrained(merged, task="TOKEN_CLS")
    assert not model.fresh
    tokenizer, true, predicted, losses = load_tokenizer(str(merged)), [], [], []
    for words, labels in zip(*_read(sentences), strict=True):
        ids = np.asarray([tokenizer(words, is_split_into_words=True)["input_ids"]])
        logits = np.asarray(model.apply(model.params, ids).logits, np.float64)[0, 1:-1]
        classes = [names.index(label) for label in labels]
        shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        losses += (-shares[np.arange(len(classes)), classes]).tolist()
        true.append(labels)
        predicted.append([names[number] for number in logits.argmax(1)])
    run("evaluate", "--run", trained, "--data", sentences, "--output", figures)
    found = json.loads(figures.read_text())
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["entity_f1"] == score_entities(true, predicted)[0].f1
    pairs = [pair for own in zip(true, predicted, strict=True) for pair in zip(*own, strict=True)]
    assert found["token_accuracy"] == pytest.approx(np.mean([one == two for one, two in pairs]))
    printed = run("predict", "--run", trained, "--data", sentences)[1]
    assert [json.loads(line)["labels"] for line in printed.splitlines()] == predicted


def _read(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["tokens"] for row in rows], [row["ner_tags"] for row in rows]


def test_a_resumed_run_is_the_whole_one_bit_for_bit(
    run, trained, model_directory, sentences, tmp_path
):
    words = ("train", "--model", model_directory, "--data", sentences, "--output", tmp_path / "run")
    words = (*words, *FLAGS, "--learning-rate", 0.02, "--max-steps", 30, "--eval-every", 15)
    assert run(*words, "--stop-after-steps", 7)[0] == 0
    assert run(*words, "--resume")[0] == 0
    one, other = leaves(trained / "adapter"), leaves(tmp_path / "run" / "adapter")
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[path], other[path]) for path in one)
    assert without_times(trained) == without_times(tmp_path / "run")


def test_a_sweep_keeps_the_best(run, model_directory, sentences, tmp_path):
    words = ("train", "--model", model_directory, "--data", sentences, "--output", tmp_path / "out")
    words = (*words, *FLAGS, "--max-steps", 2, "--sweep", "learning_rate=0.01,0.02")
    code, printed, complaint = run(*words)
    assert (code, complaint) == (0, "")
    assert "entity_f1" in printed
    assert run("evaluate", "--run", tmp_path / "out", "--data", sentences)[0] == 0


def test_what_is_refused(run, trained, model_directory, sentences, tmp_path):
    words = ("train", "--model", model_directory, "--output", tmp_path / "out", *FLAGS)
    refused(run(*words, "--data", sentences, "--pooling", "mean"), "--pooling goes with")
    same = tmp_path / "same.conll"
    same.write_text("a O\nb O\n\nc O\n")
    refused(run(*words, "--data", same), "every word of", "has the label 'O'")
    other = tmp_path / "other.conll"
    other.write_text("a O\nb B-ORG\n")
    refused(
        run("evaluate", "--run", trained, "--data", other), "'B-ORG' in line 1", "--label-column"
    )
    refused(run("predict", "--run", trained, "--text", "a", "--output", "x.csv"), ".jsonl")
    refused(run("evaluate", "--run", trained, "--data", other, "--pooling", "cls"), "--pooling")


def test_an_adapter_by_way_of_peft_needs_labels(run, trained, model_directory, tmp_path):
    peft, back = tmp_path / "peft", tmp_path / "back"
    assert run("convert", trained, peft)[::2] == (0, "")
    assert run("convert", peft, back, "--model", model_directory)[::2] == (0, "")
    text = ("--text", "good word1 bad")
    words = ("predict", "--adapter", back, "--model", model_directory, *text, "--max-length", 128)
    refused(run(*words), "give --labels", "with --max-length")
    refused(run(*words, "--labels", "A", "B"), "2 labels", "4 classes")
    refused(run(*words, "--labels", "A", "B", "C", "D", "--pooling", "mean"), "--pooling")
    names = ("--labels", "B-LOC", "B-PER", "I-PER", "O")
    assert run(*words, *names)[1] == run("predict", "--run", trained, *text)[1]


@pytest.mark.filterwarnings("default")  # The command line prints warnings.
def test_a_cut_text_says_how_many_words_are_lost(run, model_directory, sentences, tmp_path):
    words = ("train", "--model", model_directory, "--data", sentences, "--output", tmp_path / "out")
    code, printed, complaint = run(*words, *FLAGS, "--max-steps", 1, "--max-length", 8)
    assert code == 0, complaint
    assert "40 rows are longer than 8 tokens and cut" in printed + run.notes
    code, printed, complaint = run("predict", "--run", tmp_path / "out", "--text", "good " * 9)
    assert code == 0
    assert "3 of 9 words are lost" in complaint
    assert json.loads(printed)["labels"][6:] == [None] * 3
