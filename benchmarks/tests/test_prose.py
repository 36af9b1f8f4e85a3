"""Figures in pages: what stands between markers, and that none stands outside of them."""

import re

import pytest

from tests.support.paths import ROOT

FINDINGS = ("adapters", "cpu", "memory", "partition", "start")
# Pages whose figures must all be made from results files.
OWN = [
    ROOT / "docs" / "benchmarks.md",
    ROOT / "docs" / "many-adapters.md",
    *(ROOT / "docs" / "benchmarks" / f"{name}.md" for name in FINDINGS),
]
FOUND = {
    "step": {
        "figures": {
            "MiniLM-L6": {"ours": {"time_to_full": 0.524, "state_bytes": 86_012}},
            "32 tokens": {"a, as b": 1.5},
        }
    }
}
# Versions, and what a measurement was set to: neither is a result.
SETTINGS = re.compile(r"(?:jax|Python|glibc) \d\.\d+|within \d+ %|In 8 GB")
# A time, a size, a share or a ratio with two decimals.
MEASURED = re.compile(
    r"(?<![\w.,])\d[\d,]*(?:\.\d+)? ?(?:ms|µs|MB|GB|kB|KB|TFLOP|GFLOP|%|percent)(?![\w])"
    r"|(?<![\w.])\d\.\d\d(?![\d.])"
    r"|\d(?:\.\d)? (?:times as|x faster)"
)


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_every_page_says_what_the_results_files_say():
    from page import make_pages

    pages = make_pages()
    assert set(OWN) <= set(pages)
    stale = [path.name for path, text in pages.items() if path.read_text() != text]
    assert not stale, "python benchmarks/page.py writes them anew"


def test_a_changed_figure_is_noticed():
    from _prose import fill

    page = "takes <!-- figure: step > MiniLM-L6 > ours > time_to_full as .2f -->0.61<!-- end -->."
    assert fill(page, FOUND) == page.replace("0.61", "0.52")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("step > MiniLM-L6 > ours > time_to_full", "0.524"),
        ("step > MiniLM-L6 > ours > time_to_full as percent", "52 %"),
        ("step > MiniLM-L6 > ours > time_to_full as saved", "48 %"),
        ("step > MiniLM-L6 > ours > time_to_full as times", "1.9"),
        ("step > MiniLM-L6 > ours > state_bytes", "86.0 kB"),
        ("step > MiniLM-L6 > ours > state_bytes as ,", "86,012"),
        ("step > 32 tokens > a, as b as ms", "1.50 ms"),
    ],
)
def test_a_figure_is_written_as_its_marker_says(words, text):
    from _prose import read_figure

    assert read_figure(words, FOUND) == text


@pytest.mark.parametrize(
    "words", ["stride > x", "step > MiniLM-L7 > ours", "step > 32 tokens > a > b"]
)
def test_a_marker_that_names_no_figure_is_an_error_that_says_which(words):
    from _prose import read_figure

    with pytest.raises(KeyError, match=f"marker 'figure: {re.escape(words)}'"):
        read_figure(words, FOUND)


@pytest.mark.parametrize("page", OWN, ids=lambda page: page.name)
def test_no_measured_figure_stands_outside_of_markers(page):
    from _prose import remove_made

    text = remove_made(page.read_text())
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    assert not [match[0] for match in MEASURED.finditer(SETTINGS.sub("", text))]


@pytest.mark.parametrize("lost", ["date", "commit", "load"])
def test_a_results_file_without_its_record_is_refused(tmp_path, monkeypatch, lost):
    import json

    import _results
    from page import UnrecordedError, read_results

    results = tmp_path / "benchmarks" / "results"
    monkeypatch.setattr(_results, "RESULTS", results)
    results.parent.mkdir()
    path = _results.write_results("question", {"ours": {"bytes": 1}})
    record = json.loads(path.read_text())
    assert read_results(tmp_path) == {"question": record}
    path.write_text(json.dumps({key: value for key, value in record.items() if key != lost}))
    with pytest.raises(UnrecordedError, match=rf"question\.json lacks {lost}: measure it again"):
        read_results(tmp_path)


def test_the_load_counts_what_others_do_and_not_what_the_script_does(monkeypatch):
    import _results

    monkeypatch.setattr(_results, "_BEGAN", _results.time.monotonic() - 10)
    monkeypatch.setattr(_results, "_BUSY", 100.0)
    monkeypatch.setattr(_results, "_OWN", 4.0)
    monkeypatch.setattr(_results, "_read_busy", lambda: 115.0)
    monkeypatch.setattr(_results, "_read_own", lambda: 14.0)
    assert _results.describe_load()["others"] == pytest.approx(0.5, abs=0.02)


def test_older_files_are_named_with_what_they_lack():
    from _prose import write_before
    from _sections import BEFORE
    from page import read_results

    found = read_results()
    assert set(BEFORE) <= set(found)
    text = "\n".join(write_before(found))
    for name in BEFORE:
        recorded = all(found[name].get(key) for key in ("date", "commit", "load"))
        assert (f"`{name}`" in text) is not recorded


def test_every_figure_is_drawn_from_the_committed_files():
    pytest.importorskip("matplotlib")
    from figures import FIGURES, IMAGES, describe
    from page import read_results

    found = read_results()
    assert {path.stem for path in IMAGES.glob("*.svg")} >= set(FIGURES)
    for name, (read, _, _) in FIGURES.items():
        drawn = (IMAGES / f"{name}.svg").read_text()
        assert describe(read(found)) in drawn, f"{name}: python benchmarks/figures.py"


def test_every_figure_is_shown_on_the_page():
    pytest.importorskip("matplotlib")
    from figures import FIGURES

    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert all(f"](images/{name}.svg)" in page for name in FIGURES)


def test_every_block_stands_on_a_page():
    from _prose import BLOCKS, find_pages

    text = "".join(page.read_text() for page in find_pages(ROOT))
    for name in BLOCKS.keys() - {""}:  # the README's
        assert f"<!-- by benchmarks/page.py: {name} -->" in text, name


def test_the_list_of_scripts_is_complete():
    folder = ROOT / "benchmarks"
    listed = set(re.findall(r"`(\w+\.py)`", (folder / "README.md").read_text()))
    scripts = {path.name for path in folder.glob("*.py") if not path.name.startswith("_")}
    assert scripts <= listed
    assert {name for name in listed if not (folder / name).exists()} == set()
