"""What processes compare before they act together, in one process."""

from dataclasses import replace

import numpy as np
import pytest

from lntune_jax.cli.agreement import (
    check_agreement,
    describe_differences,
    describe_files,
    describe_rows,
    describe_tasks,
)
from lntune_jax.data.documents import read_documents
from lntune_jax.tasks import TaskOptions, text_classification


def test_each_difference_is_named_with_its_process():
    first = {"--stop-after-steps": None, "--targets": [], "content of --data": "a" * 64}
    second = {"--stop-after-steps": 3, "--targets": ["x", "y"], "content of --data": "b" * 64}
    text = describe_differences([first, first, second])
    assert "process 2 has --stop-after-steps 3 and process 0 unset" in text
    assert "process 2 has --targets x y and process 0 unset" in text
    assert "process 2 has another content of --data than process 0" in text
    assert "process 1" not in text
    assert "aaaa" not in text


def test_many_differences_are_counted():
    text = describe_differences([{}, {f"--{name}": 1 for name in "abcdefgh"}])
    assert text.count("process 1 has") == 6
    assert "and 2 differences more" in text


def test_one_process_agrees_with_itself():
    check_agreement({"--seed": 0})


@pytest.fixture
def options(model_directory, table):
    return TaskOptions(model=str(model_directory), data=table)


def test_rows_are_the_same_wherever_they_lie_and_labels_are_named(options, table, tmp_path):
    here = describe_rows(text_classification.read(options))
    other = tmp_path / "other.csv"
    other.write_text(table.read_text())
    assert describe_rows(text_classification.read(replace(options, data=other))) == here
    other.write_text(table.read_text().replace("word1 ", "word2 "))
    text = describe_differences(
        [here, describe_rows(text_classification.read(replace(options, data=other)))]
    )
    assert "process 1 has another content of --data as read than process 0" in text
    assert "labels" not in text
    other.write_text(table.read_text().replace(",pos", ",good"))
    text = describe_differences(
        [here, describe_rows(text_classification.read(replace(options, data=other)))]
    )
    assert "process 1 has labels in --data: good neg and process 0 neg pos" in text


def test_documents_are_the_same_wherever_they_lie(tmp_path):
    found = []
    for name, content in (("a", "one\n\ntwo"), ("b", "one\n\ntwo"), ("c", "one\n\nthree")):
        file = tmp_path / f"{name}.txt"
        file.write_text(content)
        found.append(describe_rows([(read_documents(file, "auto", "text"),)]))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_what_was_made_of_the_rows_is_compared_too(options):
    data = text_classification.read(options)
    tasks = text_classification.prepare(options, data)
    here = describe_tasks(tasks, 8)
    assert here == describe_tasks(text_classification.prepare(options, data), 8)
    other = replace(tasks[0], buckets=(8, 24))
    text = describe_differences([here, describe_tasks([other], 8)])
    assert "another choice of padded lengths" in text


def test_a_change_anywhere_in_a_models_files_is_seen(model_directory, tmp_path):
    here = describe_files(str(model_directory))
    assert "content of config.json in --model" in here
    large = tmp_path / "model.gguf"
    content = np.zeros(2**25, np.uint8)
    large.write_bytes(content.tobytes())
    before = describe_files(str(large))
    content[::1000] = 1
    large.write_bytes(content.tobytes())
    assert describe_files(str(large)) != before
    assert describe_files("owner/name") == {}
