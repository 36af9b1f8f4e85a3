"""`benchmarks/gpu.py` without a GPU: its figures on a tiny shape, its time, its failures."""

import argparse
import json
import time

import jax
import pytest

from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def read(capsys):
    from _gpu_parts import read_figures

    return read_figures(capsys.readouterr().out)


def test_ours_takes_steps_and_says_that_there_is_no_cudnn(capsys):
    from _gpu_jax import measure

    with jax.numpy_dtype_promotion("standard"):
        measure({"method": "ln", "shape": "tiny", "seconds": 0.01})
    figures = read(capsys)
    assert figures["step_seconds"] > 0
    assert figures["compiler_gb"] > 0
    assert figures["attention"] == "xla"
    assert figures["attention_note"].startswith("no cuDNN: ")


def test_the_matrix_products_say_which_device_it_is(capsys):
    from _gpu_jax import measure_peak

    measure_peak({"seconds": 0.01})
    figures = read(capsys)
    assert (figures["device"], figures["datasheet_tflops"]) == ("cpu", None)
    assert figures["measured_tflops"] > 0


@pytest.mark.parametrize(("shape", "count"), [("3B", 3_212_574_720), ("8B", 7_504_658_432)])
def test_n_is_the_parameters_of_matrix_products(shape, count):
    from _gpu_jax import make_model
    from _gpu_parts import SHAPES

    size = SHAPES[shape]
    assert size.multiplied == count
    leaves = jax.tree_util.tree_flatten_with_path(make_model(size, {}, "xla").params)[0]
    norms = sum(leaf.size for path, leaf in leaves if path[-1].key == "scale")
    table = 0 if size.tied else size.words * size.width
    assert sum(leaf.size for _, leaf in leaves) == count + norms + table


def test_peaks_are_found_by_the_device_name():
    from _gpu_parts import find_peak

    assert find_peak("NVIDIA H200") == find_peak("NVIDIA H100 80GB HBM3") == 989e12
    assert find_peak("NVIDIA H100 PCIe") == 756e12
    assert find_peak("NVIDIA L40S") == 362e12
    assert find_peak("NVIDIA L4") == 121e12
    assert find_peak("TPU v5p") is None


SCRIPTS = {
    "good": 'print(\'FIGURES {"batch": 2}\\nnoise\\nFIGURES {"step_seconds": 0.5}\')',
    "raises": 'print(\'FIGURES {"batch": 2}\'); raise ValueError("of /a/folder/here\\nmore")',
    "reports": 'print(\'FIGURES {"error": "OutOfMemory: 9 GB"}\'); raise SystemExit(1)',
    "dies": "import os; print('FIGURES {\"batch\": 2}', flush=True); os.abort()",
    "sleeps": "import time; print('FIGURES {\"batch\": 2}', flush=True); time.sleep(60)",
}


@pytest.fixture
def parts(monkeypatch, tmp_path):
    import gpu
    from _gpu_parts import Part

    for name, text in SCRIPTS.items():
        (tmp_path / f"_gpu_{name}.py").write_text(text)
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    monkeypatch.setattr("_results.RESULTS", tmp_path)
    return {name: Part(name, "small", name, 30, {"method": "ln"}) for name in SCRIPTS}


def test_a_part_that_fails_leaves_its_figures_and_its_error(parts):
    from gpu import run_part

    assert run_part(parts["good"], "tiny", 1, 30) == {"batch": 2, "step_seconds": 0.5}
    assert run_part(parts["raises"], "tiny", 1, 30) == {"batch": 2, "error": "ended with 1: more"}
    assert run_part(parts["reports"], "tiny", 1, 30) == {"error": "OutOfMemory: 9 GB"}
    assert run_part(parts["dies"], "tiny", 1, 30)["error"].startswith("ended with -6")


def test_a_part_is_stopped_at_its_time(parts):
    from gpu import run_part

    start = time.monotonic()
    assert run_part(parts["sleeps"], "tiny", 1, 8) == {"batch": 2, "error": "stopped after 8 s"}
    assert time.monotonic() - start < 50


def options(**changes):
    given = {"minutes": 1, "seconds": 1, "shapes": ["tiny"], "results": "gpu", "parts": None}
    return argparse.Namespace(**{"missing": False, **given, **changes})


def test_results_are_written_after_each_part_and_time_left_over_is_named(parts, tmp_path):
    from gpu import LEFT_OUT, choose, run_all

    run_all([parts["good"], parts["reports"]], options(), {}, {"measured_tflops": 1.0})
    figures = json.loads((tmp_path / "gpu.json").read_text())["figures"]
    assert figures["tiny"]["good"]["tokens_per_second"] == 2 * 32 / 0.5
    assert figures["tiny"]["reports"] == {"error": "OutOfMemory: 9 GB"}
    figures = run_all([parts["good"]], options(minutes=0), {}, {})
    assert figures["tiny"]["good"] == {"error": LEFT_OUT}
    found = {"tiny": {"good": {"error": LEFT_OUT}, "reports": {"error": "OutOfMemory: 9 GB"}}}
    given = (parts["good"], parts["reports"])
    assert choose(given, options(missing=True), found) == [parts["good"]]


def test_goals_are_set_beside_ours_from_what_peft_did():
    from gpu import complete

    rows = {
        "ours": {"step_seconds": 0.1, "batch": 2, "peak_gb": 3.0},
        "PEFT, eager": {"step_seconds": 0.4, "batch": 2, "peak_gb": 5.0},
        "PEFT, compiled": {"step_seconds": 0.2, "batch": 2, "peak_gb": 4.0},
        "full, JAX": {"step_seconds": 0.3, "batch": 2},
        "largest batch, ours": {"step_seconds": 1.0, "largest_batch": 20},
        "largest batch, PEFT": {"step_seconds": 1.0, "largest_batch": 10},
    }
    found = complete({"tiny": rows}, {"datasheet_tflops": 1.0})["tiny"]
    ours = found["ours"]
    assert ours["tokens_per_second"] == pytest.approx(640)
    assert ours["tokens_per_second_goal"] == pytest.approx(1.5 * 320)
    assert (ours["mfu_goal"], ours["peak_gb_goal"]) == (0.45, 4.0)
    assert found["full, JAX"]["mfu"] == pytest.approx(ours["mfu"] / 3 * 6 / 4)
    assert found["largest batch, ours"]["largest_batch_goal"] == 10
    assert found["largest batch, ours"]["tokens_per_second"] == 640
    assert "mfu_goal" not in found["PEFT, eager"]


def test_the_largest_batch_is_found_by_trying(capsys):
    from _gpu_parts import find_largest

    def run(batch):
        if batch > 50:
            raise MemoryError("too much")
        return 0.1

    find_largest(run, lambda batch: 100 + 10 * batch, 700, 4)
    figures = read(capsys)
    assert figures["predicted_batch"] == 60
    assert figures["last_refused"] > figures["largest_batch"] > 44
    assert figures["refused_with"] == "MemoryError: too much"


def test_errors_carry_no_folders():
    from _gpu_parts import clean, describe

    assert clean("No module in /opt/a/b.py, line 3") == "No module in ..., line 3"
    assert describe(ValueError("first\nsecond")) == "ValueError: first"
