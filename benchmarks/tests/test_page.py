"""docs/benchmarks.md: what `benchmarks/page.py` makes of the results files, and of nothing else."""

import pytest

from tests.support.paths import ROOT

RESULTS = sorted(path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_the_committed_page_is_made_from_the_committed_files():
    from page import PAGE, make_page

    assert PAGE.read_text() == make_page(), "python benchmarks/page.py writes it anew"


def test_the_page_of_types_is_made_from_the_committed_file():
    from page import TYPES_PAGE, make_types_page, read_results

    figures = read_results()["torchax_types"]["figures"]
    assert TYPES_PAGE.read_text() == make_types_page(figures), "python benchmarks/page.py"


def test_the_readme_s_table_is_made_from_the_committed_files():
    from page import README, make_readme

    assert README.read_text() == make_readme(), "python benchmarks/page.py writes it anew"


@pytest.mark.parametrize("name", RESULTS)
def test_every_results_file_has_a_section(name):
    from _sections import SECTIONS
    from page import make_page, read_results

    (section,) = [each for each in SECTIONS if each.name == name]
    assert f"\n## {section.title}\n" in make_page()
    kept = section.keep or ()
    assert set(kept) <= set(read_results()[name]["figures"])


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
            assert (section.script or section.name) in named, section.name


def test_every_page_of_findings_is_linked(tmp_path):
    from page import make_page

    (tmp_path / "docs" / "benchmarks").mkdir(parents=True)
    (tmp_path / "docs" / "benchmarks" / "some-topic.md").write_text("# Some topic\n\nText.\n")
    assert make_page(tmp_path).endswith("\n- [Some topic](benchmarks/some-topic.md)\n")
    for path in (ROOT / "docs" / "benchmarks").glob("*.md"):
        assert f"(benchmarks/{path.name})" in make_page()


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
    from _numbers import write_figure

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
    assert len(record["date"]) == 10


def test_the_opening_compares_every_way_with_ours():
    from _opening import write_opening

    step = {
        "ours: partition_params": {"time_to_ours": 1.0, "flops_to_forward": 2.02, "state_bytes": 8},
        "full fine-tuning": {"time_to_ours": 2.0, "flops_to_forward": 3.0, "state_bytes": 80},
    }
    ratios = {
        "ours": 1.0,
        "ours, memory kept": 0.75,
        "PEFT eager, 1 thread": 1.25,
        "PEFT eager, 2 threads": 2.0,
    }
    peft = {name: {"ratio_to_ours": ratio} for name, ratio in ratios.items()}
    found = {
        "step": {"figures": {"MiniLM-L6": step}},
        "peft_step": {"figures": {"minilm:8x64": peft}},
    }
    text = "\n".join(write_opening(found))
    assert "| **LN tuning here**: `partition_params` | 1.000 | 2.020 | 8 bytes |" in text
    assert "| full fine-tuning | 2.000 | 3.000 | 80 bytes |" in text
    assert "| LN tuning here, with freed memory kept | 0.750 | - | - |" in text
    assert "| LN tuning by PEFT eager, 1 thread, PyTorch | 1.250 | - | - |" in text
    assert write_opening({}) == []
