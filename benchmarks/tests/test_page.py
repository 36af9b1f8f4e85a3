"""The appendix: what `benchmarks/page.py` makes of the results files, and of nothing else."""

import re

import pytest

from tests.support.paths import ROOT

RESULTS = sorted(path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_every_results_file_has_a_section():
    from _sections import APPENDICES, SECTIONS
    from page import make_appendix, read_results

    found = read_results()
    assert sorted(section.name for section in SECTIONS if section.name in RESULTS) == RESULTS
    for appendix in APPENDICES:
        page = make_appendix(appendix, found)
        for section in appendix.sections:
            if section.name in found:
                assert f"\n## {section.title}\n" in page
                assert set(section.keep or ()) <= set(found[section.name]["figures"])


def test_every_section_has_a_script_whose_docstring_is_its_question():
    from _sections import SECTIONS
    from page import read_question

    for section in SECTIONS:
        script = ROOT / "benchmarks" / f"{section.script or section.name}.py"
        if section.name in RESULTS or section.absent:
            assert read_question(script), script.name


def test_make_runs_every_script_that_needs_no_gpu_packages():
    from _sections import SECTIONS

    named = (ROOT / "Makefile").read_text().split()
    for section in SECTIONS:
        if section.name in RESULTS and not section.name.startswith("gpu"):
            script = section.script or section.name
            assert {script, f"benchmarks/{script}.py"} & set(named), section.name


def test_every_page_of_findings_is_linked():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    for path in (ROOT / "docs" / "benchmarks").glob("*.md"):
        assert f"(benchmarks/{path.name})" in page, path.name


def test_no_results_file_names_a_folder_or_a_host():
    for name in RESULTS:
        text = (ROOT / "benchmarks" / "results" / f"{name}.json").read_text()
        assert not any(
            root in text for root in ("/home", "/tmp", "/root", "/work", "site-packages")
        )


def test_rows_tables_and_settings_are_told_apart():
    from _tables import write_tables

    figures = {
        "small": {
            "ours": {"time_ratio": 0.5, "time_ratio_limit": 0.7},
            "theirs": {"time_ratio": 1.0},
        },
        "cases": [{"mesh": {"data": 2}, "sent_bytes": 123_456}],
        "shape": {"batch": 8},
        "rounds": 3,
    }
    figures["small"]["left out"] = {"time_ratio": 2.0}
    columns = {"time_ratio": "time (theirs = 1)", "rounds": None}
    text = "\n".join(write_tables(figures, columns, "^left"))
    assert "**small**\n\n|  | time (theirs = 1) |\n| --- | --- |\n" in text
    assert "| ours | 0.500 (limit 0.700) |\n| theirs | 1.000 |" in text
    assert "| mesh | sent |\n| --- | --- |\n| data 2 | 123 kB |" in text
    assert text.endswith("\nBatch 8.")


def test_tables_without_a_column_in_common_stay_apart_and_options_may_be_a_table():
    from _tables import write_tables

    figures = {"saves": {"ours": {"waits": 1}}, "options": {"zarr": {"load": 2}}}
    text = "\n".join(write_tables(figures))
    assert "**saves**\n\n|  | waits |" in text
    assert "**options**\n\n|  | load |" in text


def test_small_tables_of_the_same_kind_become_one():
    from _tables import write_tables

    figures = {size: {"ours": {"bytes": 12}, "full": {"bytes": None}} for size in ("4", "8")}
    assert write_tables(figures)[1:] == [
        "|  |  | bytes |",
        "| --- | --- | --- |",
        "| 4 | ours | 12 bytes |",
        "| 4 | full | - |",
        "| 8 | ours | 12 bytes |",
        "| 8 | full | - |",
    ]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("seconds", 0.000214, "214 µs"),
        ("compile_seconds", 8.594, "8.59 s"),
        ("bytes", 9_224, "9,224 bytes"),
        ("state_bytes", 85_186_580, "85.2 MB"),
        ("time_ratio", 1.0196, "1.020"),
        ("mfu", 0.45678, "0.457"),
        ("flops", 22_649_266_176, "22.6 GFLOP"),
        ("difference", 1.64e-7, "1.6e-07"),
        ("", 22_713_986, "22,713,986"),
        ("only", True, "yes"),
        ("", 0.0, "0"),
    ],
)
def test_figures_are_written_with_their_units(key, value, text):
    from _tables import write_figure

    assert write_figure(value, key) == text


def test_a_results_file_says_when_and_on_what(monkeypatch, tmp_path):
    import json

    import _results

    monkeypatch.setattr(_results, "RESULTS", tmp_path / "results")
    path = _results.write_results("question", {"ours": {"bytes": 1}}, others=("safetensors",))
    record = json.loads(path.read_text())
    assert record["figures"] == {"ours": {"bytes": 1}}
    assert {"jax", "optax", "safetensors"} <= set(record["versions"])
    assert record["machine"]["cores"] >= 1
    assert record["date"][:2] == "20"
    assert re.fullmatch(r"[0-9a-f]{12}(\+changes)?", record["commit"])
    assert set(record["load"]) == {"at_start", "others"}
    assert len(record["date"]) == 10
