"""On one GPU: what does LN tuning here cost, beside PEFT in PyTorch, LoRA and full fine-tuning?

The shapes of Llama-3.2-3B, with the batch of PEFT's own benchmark (4 x 768 tokens), and of
Llama-3.1-8B, random weights in bfloat16; each variant in a process of its own, so that memory is
clean. Tokens per second; the share of the device's peak that the step reaches, counted at 4N FLOPs
a token (6N in full fine-tuning); the allocator's peak and, for JAX, the compiler's account; and the
largest batch that fits. Goals: 1.5 times the tokens per second of PEFT's faster way, 45 % of the
peak, and no more memory than PEFT.

No network and no files are needed: jax, flax, optax and this checkout, and for the other side
torch, transformers and peft. Results are written after each part. A part that fails or runs over
its time leaves its error in the table; what does not fit into `--minutes` is named, and
`--missing` runs it later. `--shapes tiny` tries everything out on a CPU.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _results
from _gpu_parts import PARTS, SHAPES, Part, clean, read_figures

HERE = Path(__file__).resolve().parent
MFU_GOAL, SPEED_GOAL = 0.45, 1.5
LEFT_OUT = "left out: no time"
COLUMNS = ("tokens_per_second", "mfu", "peak_gb", "compiler_gb", "compile_seconds")


def run_part(part: Part, shape: str, seconds: float, limit: float) -> dict:
    """The figures of a part, with its error if it has one; it is stopped after `limit` seconds."""
    spec = dict(part.spec) | {"shape": shape, "seconds": seconds}
    script = HERE / f"_gpu_{part.side}.py"
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, str(script), json.dumps(spec)],
            stdout=output,
            stderr=errors,
            env=os.environ | make_environment(part),
            start_new_session=True,
        )
        stopped = False
        try:
            process.wait(max(limit, 1))
        except subprocess.TimeoutExpired:
            stopped = True
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        errors.seek(0)
        figures = read_figures(output.read())
        lines = [line for line in errors.read().splitlines() if line.strip()]
    if stopped:
        figures["error"] = f"stopped after {limit:.0f} s"
    elif process.returncode and "error" not in figures:
        last = lines[-1].strip() if lines else ""
        figures["error"] = clean(f"ended with {process.returncode}: {last}")
    return figures


def make_environment(part: Part) -> dict[str, str]:
    """Memory is taken as needed, so that peaks are a step's own; for the largest batch at once."""
    if part.side == "torch":
        return {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    return {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "true" if part.spec.get("largest") else "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }


def complete(tables: dict[str, dict], settings: dict) -> dict:
    """The figures for the file: what follows from what was measured, and the goals beside it."""
    figures: dict = {"settings": settings}
    known = settings.get("datasheet_tflops") or settings.get("measured_tflops")
    for shape, rows in tables.items():
        size = SHAPES[shape]
        figures[shape] = {name: dict(row) for name, row in rows.items()}
        for name, row in figures[shape].items():
            batch = row.get("largest_batch", row.get("batch", size.batch))
            if "step_seconds" in row:
                row["tokens_per_second"] = batch * size.length / row["step_seconds"]
            if "tokens_per_second" in row and known:
                factor = 6 if name.startswith("full") else 4
                rate = factor * size.multiplied * row["tokens_per_second"]
                row["mfu"] = rate / (known * 1e12)
        set_goals(figures[shape])
    return figures


def set_goals(rows: dict[str, dict]) -> None:
    """Beside our figures, what they are to be: from PEFT's in the same table."""
    theirs = [row for name, row in rows.items() if name.startswith("PEFT")]
    speeds = [row["tokens_per_second"] for row in theirs if "tokens_per_second" in row]
    peaks = [row["peak_gb"] for row in theirs if "peak_gb" in row]
    largest = rows.get("largest batch, PEFT", {}).get("largest_batch")
    for name, row in rows.items():
        if name.startswith("ours") and "step_seconds" in row:
            row["mfu_goal"] = MFU_GOAL
            if speeds:
                row["tokens_per_second_goal"] = SPEED_GOAL * max(speeds)
            if peaks:
                row["peak_gb_goal"] = min(peaks)
        elif name.startswith("largest batch, ours") and largest:
            row["largest_batch_goal"] = largest


def run_all(parts: list[Part], options: argparse.Namespace, found: dict, settings: dict) -> dict:
    """Runs parts until the time is over; what each leaves is written at once."""
    end = time.monotonic() + options.minutes * 60
    names = dict(zip(("small", "large"), options.shapes, strict=False))
    for part in parts:
        shape = names.get(part.shape)
        if shape is None:
            continue
        left = end - time.monotonic()
        if left < 0.2 * min(part.limit, 60):
            row = {"error": LEFT_OUT}
        else:
            limit = min(part.limit, left)
            row = run_part(part, shape, options.seconds, limit)
            if limit < part.limit and row.get("error", "").startswith("stopped after"):
                row["error"] = LEFT_OUT  # the time for all was over, not its own
        if part.spec["method"] == "peak":
            if shape != "tiny" and row.get("platform", "cpu") == "cpu":
                raise SystemExit(f"jax sees no GPU: {row.get('error', 'only a CPU')}")
            settings |= row
        else:
            found.setdefault(shape, {})[part.name] = row
        figures = complete(found, settings)
        _results.write_results(options.results, figures, ("torch", "transformers", "peft"))
        report(part, shape, figures)
    return complete(found, settings)


def report(part: Part, shape: str, figures: dict) -> None:
    row = figures.get(shape, {}).get(part.name, figures["settings"])
    shown = {key: row[key] for key in (*COLUMNS, "largest_batch", "error") if row.get(key)}
    if part.spec["method"] == "peak":
        shown = row
    cells = (f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
    print(f"{shape:5s} {part.name:32s} {', '.join(cells)}", flush=True)


def choose(parts: tuple[Part, ...], options: argparse.Namespace, found: dict) -> list[Part]:
    """The parts that were asked for; with `--missing` those that left no figures for want of time.

    The device is always looked at: the shares of its peak need it.
    """
    names = dict(zip(("small", "large"), options.shapes, strict=False))
    chosen = []
    for part in parts:
        row = found.get(names.get(part.shape, ""), {}).get(part.name)
        wanted = options.parts is None or part.name in options.parts
        done = options.missing and row is not None and row.get("error") != LEFT_OUT
        if part.spec["method"] == "peak" or (wanted and not done):
            chosen.append(part)
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.5, help="for all parts together")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["3B", "8B"])
    names = sorted({part.name for part in PARTS})
    parser.add_argument(
        "--parts", nargs="+", choices=names, metavar="NAME", help="only those of these names"
    )
    parser.add_argument("--missing", action="store_true", help="only those left out before")
    parser.add_argument("--seconds", type=float, default=4.0, help="of steps, for each variant")
    parser.add_argument("--folder", type=Path, default=None, help="of the results file")
    options = parser.parse_args()
    options.results = "gpu-tiny" if "tiny" in options.shapes else "gpu"
    if options.folder is not None:
        _results.RESULTS = options.folder
    found, settings = {}, {}
    path = _results.RESULTS / f"{options.results}.json"
    if path.exists() and (options.parts or options.missing):  # else begin anew
        found = json.loads(path.read_text())["figures"]
        settings = found.pop("settings", {})
    run_all(choose(PARTS, options, found), options, found, settings)
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
