import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from lntune_jax import LNTuningError
from lntune_jax.data.tables import read_table

ROWS = [("a good film", "pos"), ('it "works",\nmostly', "neg"), ("NA", "pos")]


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def csv_text(delimiter=","):
    quoted = [f'"{text.replace(chr(34), chr(34) * 2)}"{delimiter}{label}' for text, label in ROWS]
    return "\n".join([f"text{delimiter}label", *quoted]) + "\n"


@pytest.fixture(params=["a.csv", "a.TSV", "a.jsonl", "a.ndjson", "a.parquet"])
def table_file(request, tmp_path):
    path = tmp_path / request.param
    if request.param == "a.parquet":
        texts, labels = zip(*ROWS, strict=True)
        columns = {"text": texts, "label": pa.array(labels).dictionary_encode(), "id": [1, 2, 3]}
        parquet.write_table(pa.table(columns), path)
    elif request.param == "a.csv":
        path.write_text(csv_text())
    elif request.param == "a.TSV":
        path.write_text(csv_text("\t"))
    else:
        lines = [json.dumps({"text": text, "label": label}) for text, label in ROWS]
        path.write_text("\n".join(lines))
    return path


def test_every_format_gives_the_same_rows(table_file):
    table = read_table(table_file, "text", "label")
    assert table.texts == tuple(text for text, _ in ROWS)
    assert table.labels == tuple(label for _, label in ROWS)


def test_without_a_label_column_only_texts_are_read(table_file):
    assert read_table(table_file, "text").labels is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "text,label\na,01\nb,2\n"),
        ("a.jsonl", '{"text": "a", "label": "01"}\n{"text": "b", "label": "2"}\n'),
    ],
)
def test_labels_stay_as_written(tmp_path, name, text):
    assert read_table(write(tmp_path, name, text), "text", "label").labels == ("01", "2")


def test_numbers_and_truth_values_become_words(tmp_path):
    numbers = write(tmp_path, "a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n')
    assert read_table(numbers, "text", "label").labels == ("1", "0")
    truths = write(tmp_path, "b.jsonl", '{"text": "a", "label": true}\n')
    assert read_table(truths, "text", "label").labels == ("true",)


def test_a_byte_order_mark_is_no_part_of_a_column_name(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("\ufefftext,label\na,b\n".encode())
    assert read_table(path, "text", "label").texts == ("a",)


@pytest.mark.parametrize(
    ("name", "text", "fragments"),
    [
        ("a.csv", "", ["a.csv is empty"]),
        ("a.csv", "text,label\n", ["a.csv", "no rows"]),
        ("a.csv", "Text,label\na,b\n", ["no column 'text'", "'Text', 'label'", "did you mean"]),
        ("a.csv", "text,lable\na,b\n", ["no column 'label'", "'lable'", "--label-column"]),
        ("a.csv", "text,text,label\na,b,c\n", ["2 columns named 'text'"]),
        ("a.csv", "text,label\na,b\n,c\n", ["line 3: no text in column 'text'"]),
        ("a.csv", "text,label\na,\n", ["line 2: no label in column 'label'", "no other row"]),
        ("a.csv", "text,label\na,b,c,d\n", ["line 2: more or fewer values"]),
        ("a.jsonl", "not json\n", ["no row that can be read", "line 1: no JSON"]),
        ("a.jsonl", '{"text": "a", "label": "b"}\n{"text": "c"}\n', ["line 2: no label"]),
        ("a.jsonl", '{"text": 5, "label": "b"}\n', ["line 1: int, not text", "--text-column"]),
        (
            "a.jsonl",
            '{"text": "a", "label": [1]}\n',
            ["line 1: list, not a word", "--label-column"],
        ),
        ("a.parquet", "PAR1", ["no Parquet file, or it is damaged"]),
        ("a.xlsx", "x", ["ends in .xlsx", ".csv, .tsv, .jsonl"]),
    ],
)
def test_a_faulty_file_is_one_sentence(tmp_path, name, text, fragments):
    with pytest.raises(LNTuningError) as caught:
        read_table(write(tmp_path, name, text), "text", "label")
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\n\x00\xfe,b\n")
    with pytest.raises(LNTuningError, match=r"a\.csv holds zero bytes.* save it as UTF-8"):
        read_table(path, "text", "label")


def test_a_missing_file_names_its_flag(tmp_path):
    with pytest.raises(LNTuningError, match=r"--eval-data .*no\.csv is not a file"):
        read_table(tmp_path / "no.csv", "text", flag="--eval-data")
