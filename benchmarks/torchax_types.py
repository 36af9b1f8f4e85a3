"""How many model types of transformers `from_torch` runs as PyTorch does: values and gradients.

Each type is built small, with random weights, and reads random tokens, pixels or sound. All
floating results, and the gradients of all parameters and floating inputs, are compared with
PyTorch's in eager mode. Where they differ in float32, both are run again in float64: a gradient
that is the same there differs by rounding, any other is wrong. `torch.export` is the judge of what
PyTorch itself can trace. The norms that the modules' types tell are compared with those that
`discover_norms` finds in the trace.

    python benchmarks/torchax_types.py            # all types, one process each: an hour of a core
    python benchmarks/torchax_types.py llama vit  # those, printed only
    python benchmarks/torchax_types.py --out FILE llama vit  # and their rows written there
    python benchmarks/torchax_types.py --resume LOG  # what is not in the output of a stopped run

A process that hangs or dies counts as a failure and stops nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is nearly all of the time.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = (
    "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)

# All is imported before the children are made; JAX's backend, which has threads, starts in each.
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
import transformers.modeling_utils
from _results import RESULTS, write_results
from _torchax_models import (
    build,
    get_options,
    list_floats,
    list_kinds,
    make_slopes,
    run_torch,
)

import lntune_jax as lnt
from lntune_jax.errors import LNTuningError
from lntune_jax.integrations.torchax import from_torch

SECONDS = int(os.environ.get("SECONDS", "240"))  # for one type
MINUTES = float(os.environ.get("MINUTES", "600"))  # for all; the order is random
MEMORY = 8 << 30  # bytes of address space, for one type
WORKERS, NICE = 2, int(os.environ.get("NICE", "5"))
# Of the norm of PyTorch's, values and gradients.
EXACT = {"float32": (1e-4, 1e-3), "float64": (1e-9, 1e-8)}


def main() -> None:
    """Runs over the types, each in a process of its own, and writes the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", type=Path)
    options = parser.parse_args()
    names = options.names
    os.nice(NICE)
    torch.export.export(torch.nn.Linear(2, 2), (torch.ones(2),), strict=False)  # its own imports
    order = names or list_kinds()
    if not names:
        random.Random(0).shuffle(order)
        # Where there is no time for all, a type that could be built the last time comes first.
        known = read_known(RESULTS / "torchax_types.json")
        order.sort(key=lambda name: name not in known)
    rows = read_log(options.resume.read_text()) if options.resume else {}
    order = [name for name in order if name not in rows]
    end, lock = time.monotonic() + MINUTES * 60, threading.Lock()

    def work(name: str) -> None:
        if time.monotonic() < end:
            row = clean(run_apart(name))
            with lock:
                rows[name] = row
                print(len(rows), name, json.dumps(row), flush=True)
                if not names and len(rows) % 25 == 0:  # what is stopped leaves what it has
                    write_results("torchax_types", summarise(rows), others=("torchax", "jax"))

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(work, order))
    if options.out:
        options.out.write_text(json.dumps(rows))
    elif not names:
        write_results("torchax_types", summarise(rows), others=("torchax", "jax"))
    print(json.dumps(summarise(rows)["summary"], indent=1))


def read_log(text: str) -> dict[str, dict[str, Any]]:
    """The rows that a run has printed."""
    lines = re.findall(r"^\d+ (\S+) (\{.*\})$", text, re.MULTILINE)
    return {name: clean(json.loads(row)) for name, row in lines}


def clean(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the folders of this machine."""
    text = {k: re.sub(r"(/[\w.+-]+)+/", "", v) for k, v in row.items() if isinstance(v, str)}
    return row | text


def read_known(path: Path) -> set[str]:
    """The types of the last file of results."""
    return set(json.loads(path.read_text())["figures"]["types"]) if path.exists() else set()


def summarise(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The counts, and the types by what became of them."""
    ran = {name: row for name, row in rows.items() if row["outcome"] != "not built"}
    traceable = [name for name, row in ran.items() if row.get("exports")]
    exact = [name for name in traceable if ran[name]["outcome"].startswith("exact")]
    counts: dict[str, int] = {}
    for row in ran.values():
        counts[row["outcome"]] = counts.get(row["outcome"], 0) + 1
    norms = [row["norms"] for row in ran.values() if "norms" in row]
    return {
        "summary": {
            "types": {
                "PyTorch runs": len(ran),
                **{outcome: counts[outcome] for outcome in sorted(counts)},
                "torch.export traces": len(traceable),
                "of these exact": len(exact),
                "share": round(len(exact) / max(len(traceable), 1), 4),
            }
        },
        "norm leaves by the modules' types, against a trace": {
            "leaves": {
                "of so many models": len(norms),
                "by type": sum(own["by type"] for own in norms),
                **{
                    kind: sum(len(own[kind]) for own in norms)
                    for kind in ("missed", "missed, named in a warning", "found beside")
                },
            }
        },
        "types": dict(sorted(ran.items())),
        "not tried": sorted(set(list_kinds()) - rows.keys()),
        "not built": {n: rows[n]["reason"] for n in sorted(rows.keys() - ran.keys())},
    }


def run_apart(name: str) -> dict[str, Any]:
    """What became of a type, judged in a child that may hang or die."""
    context = multiprocessing.get_context("fork")
    mine, its = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(name, its))
    child.start()
    its.close()
    row: dict[str, Any] = {"outcome": "not built", "reason": "no answer"}
    end = time.monotonic() + SECONDS
    with contextlib.suppress(EOFError):
        while mine.poll(max(end - time.monotonic(), 0)):
            row = mine.recv()
    if child.is_alive():
        child.kill()
        if row["outcome"] == "running":
            row = {**row, "outcome": "hangs"}
    child.join()
    return {**row, "outcome": "crashes"} if row["outcome"] == "running" else row


def _work(name: str, pipe: Any) -> None:
    # A child whose parent was killed must not live on, nor take the machine's memory.
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    try:
        module, batch = build(name)
        expected = run_torch(module, batch)
    except Exception as error:  # whatever a config that was cut does not bear
        pipe.send({"outcome": "not built", "reason": f"{type(error).__name__}: {error}"[:200]})
        os._exit(0)
    row: dict[str, Any] = {"outcome": "running"}
    pipe.send(row)
    start = time.perf_counter()
    found, model = judge(module, batch, expected)
    row |= found | {"seconds": round(time.perf_counter() - start, 1)}
    pipe.send(row)
    if row["outcome"] in ("exact", "WRONG"):
        row["norms"] = compare_norms(model, batch, expected)
        pipe.send(row)
    if row["outcome"] == "WRONG":
        pipe.send(row | {"exports": True})
        row |= judge_again(module, batch)
    # What is exact went through torch.export.
    pipe.send(row | {"exports": row["outcome"] != "refused" or can_export(module, batch)})
    pipe.close()
    os._exit(0)


def can_export(module: Any, batch: dict[str, np.ndarray]) -> bool:
    """Whether torch.export traces the model."""
    tensors = {name: torch.from_numpy(x) for name, x in batch.items()}
    try:
        torch.export.export(module, (), {**tensors, **get_options(module)}, strict=False)
    except Exception:  # any, that is the question
        return False
    finally:
        for place in [m for n, m in sys.modules.items() if n.startswith("transformers.models.")]:
            for value in list(vars(place).values()):
                for function in (value, *(vars(value).values() if isinstance(value, type) else ())):
                    if hasattr(function, "cache_clear"):
                        function.cache_clear()
    return True


def judge(
    module: Any, batch: dict[str, np.ndarray], expected: dict[str, Any], dtype: str = "float32"
) -> tuple[dict[str, Any], Any]:
    """The outcome, how far values and gradients are from PyTorch's, and the model in JAX."""
    slopes = [s.astype(dtype) for s in make_slopes(expected["values"])]
    floats = {n: jnp.asarray(x) for n, x in batch.items() if x.dtype.kind == "f"}
    others = {n: jnp.asarray(x) for n, x in batch.items() if n not in floats}

    def loss_fn(params: Any, own: Any, others: Any) -> Any:
        values = list_floats(model.apply(params, **own, **others))
        if len(values) != len(slopes):
            raise AssertionError(f"{len(values)} results in place of {len(slopes)}")
        return sum((v * s).sum() for v, s in zip(values, slopes, strict=True)), values

    try:
        model = from_torch(module)
        step = jax.jit(jax.grad(loss_fn, (0, 1), has_aux=True))
        (weights, inputs), values = step(model.params, floats, others)
    except LNTuningError as error:
        return {"outcome": "refused", "reason": str(error)[:400]}, None
    except Exception as error:  # an error in words that are not ours
        reason = f"{type(error).__name__}: {error}"[:400]
        return {"outcome": "foreign error", "reason": reason}, None
    grads = [weights[name] for name in model.params] + [inputs[name] for name in floats]
    apart = measure(values, expected["values"]), measure(grads, expected["grads"])
    errors = dict(zip(("value error", "gradient error"), apart, strict=True))
    is_exact = all(a < limit for a, limit in zip(apart, EXACT[dtype], strict=True))
    return {"outcome": "exact" if is_exact else "WRONG", **errors}, model


def judge_again(module: Any, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """The same in float64, where rounding is no reason to differ."""
    module = module.double()
    batch = {n: x.astype("float64") if x.dtype.kind == "f" else x for n, x in batch.items()}
    try:
        with jax.enable_x64(True):
            row, _ = judge(module, batch, run_torch(module, batch), "float64")
    except Exception as error:  # a module that casts to float32 by itself
        return {"in float64": f"{type(error).__name__}: {error}"[:200]}
    outcome = "exact in float64" if row["outcome"] == "exact" else "WRONG"
    return {"outcome": outcome, "in float64": row}


def compare_norms(
    model: Any, batch: dict[str, np.ndarray], expected: dict[str, Any]
) -> dict[str, Any]:
    """The norms' leaves by the types of modules, beside those that a trace finds."""
    # What has no gradient takes no part in these results.
    used = {n for n, g in zip(model.params, expected["grads"], strict=False) if np.any(g)}
    by_type = {n for n in used if n.rpartition(".")[0] in model.norms}
    try:
        found = lnt.discover_norms(lambda p: list_floats(model.apply(p, **batch)), model.params)
    except Exception as error:  # a trace that fails says nothing of norms
        return {"by type": 0, "missed": [], "missed, named in a warning": [], "found beside": [],
                "error": f"{type(error).__name__}: {error}"[:200]}  # fmt: skip
    uncertain = getattr(found, "uncertain", ())  # an older package has none
    named = {*found.ambiguous, *found.opaque, *uncertain}
    missed = by_type - set(found)
    return {
        "by type": len(by_type),
        "missed": sorted(missed - named),
        "missed, named in a warning": sorted(missed & named),
        "found beside": sorted(n for n in found if n.rpartition(".")[0] not in model.norms),
    }


def measure(found: list[Any], expected: list[np.ndarray]) -> float:
    """The norm of the difference over the norm of what is expected."""
    if [np.shape(x) for x in found] != [x.shape for x in expected]:
        return float("inf")
    apart = sum(
        float(np.sum((np.asarray(a) - b) ** 2.0)) for a, b in zip(found, expected, strict=True)
    )
    whole = sum(float(np.sum(b**2.0)) for b in expected)
    error = (apart / max(whole, 1e-30)) ** 0.5
    return error if np.isfinite(error) else float("inf")


if __name__ == "__main__":
    main()
