"""Tables as people have them: other delimiters and encodings, and rows with something missing."""

import csv
import json
import math

import pyarrow as pa
import pytest
from pyarrow import parquet

from lntune_jax import LNTuningError
from lntune_jax.data.documents import read_documents
from lntune_jax.data.tables import read_table

FOREIGN = ("ArrowInvalid", "CSV parse", "JSON parse", "codec", "Traceback")


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(*arguments, **options):
    with pytest.raises(LNTuningError) as caught:
        read_table(*arguments, **options)
    message = str(caught.value)
    assert not any(word in message for word in (*FOREIGN, "\n"))
    return message


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_another_delimiter_is_found_and_said(tmp_path, delimiter):
    text = f'id{delimiter}text{delimiter}label\n1{delimiter}"good, {delimiter} film"{delimiter}a\n'
    name = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}[delimiter]
    with pytest.warns(UserWarning, match=f"--data .*a.csv is read split at {name}"):
        table = read_table(write(tmp_path, "a.csv", text), "text", "label")
    assert (table.texts, table.labels) == ((f"good, {delimiter} film",), ("a",))


def test_a_tsv_with_commas_is_found_too(tmp_path):
    with pytest.warns(UserWarning, match="split at commas"):
        assert read_table(write(tmp_path, "a.tsv", "text,label\na,b\n"), "text").texts == ("a",)


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-16", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("cp1252", "Windows-1252"),
        ("latin-1", "Windows-1252"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_an_encoding_is_found_and_said(tmp_path, recwarn, name, encoding, said):
    text = "text,label\ncaf\u00e9,na\u00efve\n"
    if name == "a.jsonl":
        text = json.dumps({"text": "caf\u00e9", "label": "na\u00efve"}, ensure_ascii=False)
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    table = read_table(write(tmp_path, name, (mark + text).encode(encoding)), "text", "label")
    assert (table.texts, table.labels) == (("caf\u00e9",), ("na\u00efve",))
    assert [said] * len(recwarn) == ([] if said is None else [said])
    assert all(f"as {said} text" in str(each.message) for each in recwarn)


def test_a_few_bad_bytes_do_not_make_a_file_another_encodings(tmp_path):
    lines = ["text,label", *["caf\u00e9,a"] * 3]
    path = write(tmp_path, "a.csv", "\n".join(lines).encode() + b"\ncaf\xe9,b\n")
    assert "line 5: bytes that are no UTF-8 in column 'text'" in refusal(path, "text", "label")


def test_damaged_utf_16_is_one_sentence(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\na,b\n".encode("utf-16") + b"\x00")
    assert "begins as UTF-16" in refusal(path, "text")


BROKEN = {
    "a.csv": (
        'text,label\ngood,a\n"two\nlines",b\n,a\n\nfine,\nx,y,z\nlast,nan\n',
        {5: "no text", 7: "no label", 8: "more or fewer values", 9: "no label"},
    ),
    "a.jsonl": (
        '{"text": "good", "label": "a"}\n\n{"text": null, "label": "a"}\n{"text": "x"}\n'
        '{"text": "two\\nlines", "label": "b"}\n{oops\n[1]\n{"text": 5, "label": "a"}\n'
        '{"text": "x", "label": NaN}\n{"text": NaN, "label": "a"}\n',
        {
            **{3: "no text", 4: "no label", 6: "no JSON", 7: "JSON that is no object"},
            **{8: "int, not text", 9: "no label", 10: "no text"},
        },
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_all_bad_rows_are_said_at_once_with_their_lines(tmp_path, name):
    content, faults = BROKEN[name]
    path = write(tmp_path, name, content)
    message = refusal(path, "text", "label")
    assert f"{name} has {len(faults)} bad rows: " in message
    assert message.endswith("mend them, or leave them out with --skip-bad-rows")
    for line, fault in faults.items():
        named = [part for part in message.split("; ") if fault in part]
        assert any(str(line) in part.rpartition("line")[2] for part in named), (line, message)


@pytest.mark.parametrize("name", BROKEN)
def test_bad_rows_are_left_out_and_counted(tmp_path, name):
    content, faults = BROKEN[name]
    path = write(tmp_path, name, content)
    with pytest.warns(UserWarning, match=f"{len(faults)} bad rows.*left out.* 2 rows are left"):
        table = read_table(path, "text", "label", bad_rows="skip")
    assert (table.texts, table.labels) == (("good", "two\nlines"), ("a", "b"))
    assert table.places == ((2, 3) if name == "a.csv" else (1, 5))
    assert {row.place for row in table.bad} == faults.keys()


def test_only_the_first_twenty_are_named(tmp_path):
    message = refusal(write(tmp_path, "a.csv", "text,label\nx,a\n" + ",a\n" * 1234), "text")
    assert "1,234 bad rows" in message
    assert "lines 3, 4, 5" in message
    assert "22: no text" in message
    assert "and 1,214 more" in message


def test_a_quote_that_is_never_closed(tmp_path):
    message = refusal(write(tmp_path, "a.csv", 'text,label\na,b\n"c,d\ne,f\n'), "text", "label")
    assert "line 3: a quote that is never closed" in message
    closed = write(tmp_path, "b.csv", 'text,label\na,"b"')
    assert read_table(closed, "text", "label").labels == ("b",)


def test_rows_of_parquet_have_numbers(tmp_path):
    path = tmp_path / "a.parquet"
    columns = {"text": ["a", None, "b", "c"], "label": [1.0, 2.0, math.nan, None]}
    parquet.write_table(pa.table(columns), path)
    message = refusal(path, "text", "label")
    assert "row 2: no text in column 'text'; rows 3, 4: no label" in message
    path.write_bytes(path.read_bytes()[:-20] + b"x" * 16 + b"PAR1")
    assert "is damaged; write it anew" in refusal(path, "text", "label")


def test_a_label_that_looks_like_a_date_stays_as_it_is_written(tmp_path):
    labels = ["2024-01-01", "2024-01-01T00:00:00", "2024-01-01 00:00:00", "12:30", 1, 1.0, "01"]
    lines = [json.dumps({"text": "a", "label": label}) for label in labels]
    table = read_table(write(tmp_path, "a.jsonl", "\n".join(lines)), "text", "label")
    assert table.labels == tuple(map(str, labels))


def test_a_value_may_be_longer_than_the_csv_module_likes(tmp_path):
    limit = csv.field_size_limit()
    path = write(tmp_path, "a.csv", "text,label\n" + "long " * 100_000 + ",a\n")
    assert len(read_table(path, "text").texts[0]) == 500_000
    assert csv.field_size_limit() == limit


def test_line_ends_inside_json_strings_are_no_lines(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text": "a\u2028b\u0085"}\r\n{"text": ""}\r\n{"text": "c"}')
    assert "line 2: no text" in refusal(path, "text")


def test_a_json_list_is_told_from_json_lines(tmp_path):
    assert "one JSON list" in refusal(write(tmp_path, "a.jsonl", '[\n{"text": "a"}\n]'), "text")


def test_documents_report_their_rows_alike(tmp_path):
    lines = ['{"prompt": "", "completion": "a"}', "{", '{"prompt": 3, "completion": "a"}']
    lines += ['{"prompt": null, "completion": "b"}', '{"prompt": "p", "completion": " "}']
    path = write(tmp_path, "a.jsonl", "\n".join(lines))
    with pytest.raises(LNTuningError) as caught:
        read_documents(path, "auto", "text")
    for part in ("3 bad rows", "line 2: no JSON", "line 3: int", "line 5: no text in column 'comp"):
        assert part in str(caught.value)
    with pytest.warns(UserWarning, match="3 bad rows"):
        documents = read_documents(path, "auto", "text", bad_rows="skip")
    assert documents.values == (("", "a"), ("", "b"))


def test_plain_text_is_decoded_alike(tmp_path):
    text = "caf\u00e9\r\nline\r\n\r\nna\u00efve\r\n"
    path = write(tmp_path, "a.txt", text.encode())
    assert read_documents(path, "auto", "text").values == ("caf\u00e9\nline", "na\u00efve")
    write(tmp_path, "a.txt", text.encode("cp1252"))
    with pytest.warns(UserWarning, match="as Windows-1252 text"):
        assert read_documents(path, "auto", "text").values == ("caf\u00e9\nline", "na\u00efve")
    write(tmp_path, "a.txt", text.encode() + b"caf\xe9")
    with pytest.raises(LNTuningError, match="line 5 holds bytes that are no UTF-8"):
        read_documents(path, "auto", "text")
