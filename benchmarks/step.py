"""What does a LayerNorm-tuning step cost, beside a split by hand, usual mistakes, LoRA and full?

Four published shapes with random float32 weights and AdamW, by the library's own models. FLOPs are
of matmuls in the compiled program, as a ratio to those of the forward pass alone; the bar is 2.03,
which is 4N/2N and attention's share (derived in tests/support/step_limit.py, with the lengths for
which it holds). Bytes are the compiler's, times are medians of interleaved steps as ratios. LoRA (r
= 8 on queries and values) is qwix's on the same modules. Saved bytes are an adapter's directory,
or, where a variant keeps the whole tree, the bytes of its leaves.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from _results import write_results
from _timing import median_ratio, time_in_turns

import lntune_jax as lnt
from lntune_jax.models.planning.program import count_bytes, count_flops
from tests.support.step_limit import find_limit
from tests.support.step_problems import BATCHES, SHAPES, make_problem
from tests.support.step_variants import BY_HAND, FULL, MAIN, OURS, VARIANTS, make_run

SLACK = 64 * 1024  # bytes of outputs beside trainable leaves and their state


def measure(name: str, variants: list[str], options) -> tuple[dict, dict]:
    """The figures of each variant, and of the limit, for one shape."""
    rows, length = options.batch or BATCHES[name][0], options.length or BATCHES[name][1]
    problem = make_problem(SHAPES[name], rows, length)
    forward = jax.jit(problem.loss).lower(problem.params, problem.batch).compile()
    limit = find_limit(problem.model, rows, length, problem.config.modules_to_save or ())
    forward_flops = count_flops(forward.as_text())
    figures, runs = {}, {}
    for each in variants:
        variant = VARIANTS[each](problem)
        start = time.perf_counter()
        programs = [lowered.compile() for lowered in variant.lower(problem.batch)]
        seconds = time.perf_counter() - start
        counted = [count_bytes(program) for program in programs]
        flops = sum(count_flops(program.as_text()) for program in programs)
        figures[each] = {
            "flops": flops,
            "flops_to_forward": flops / forward_flops,
            **{key: max(own[key] for own in counted) for key in counted[0]},
            "compile_seconds": seconds,
            "kept_bytes": count_leaves(variant.arguments[:2]),
            "state_bytes": count_leaves(variant.state or variant.arguments[1]),
            "saved_bytes": count_saved(each, variant.saved, problem),
        }
        runs[each] = make_run(variant, problem.batch)
    times = time_in_turns(runs, options.rounds)
    for each in variants:
        bases = ("time_to_hand", BY_HAND), ("time_to_full", FULL), ("time_to_ours", OURS)
        for key, base in bases:
            if base in times:
                figures[each][key] = median_ratio(times, each, base)
    return figures, {
        "rows": rows,
        "length": length,
        "forward_flops": forward_flops,
        "derived_forward_flops": limit.forward,
        "derived_flops": limit.step,
        "derived_ratio": limit.ratio,
    }


def count_leaves(tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def count_saved(name: str, saved, problem) -> int:
    """Bytes on disk of what trains: our adapter, or Orbax's directory of a dict."""
    if saved.keys() == problem.params.keys():  # the whole tree
        return count_leaves(saved)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "saved"
        if name.startswith("ours"):
            lnt.save_adapter(place, saved, problem.config, base=problem.params)
        else:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(place, saved)
        return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def judge(figures: dict, limit: dict) -> dict[str, dict]:
    """Each bar with what was found: a step's counts, and its times beside the others'."""
    ours = figures[OURS]
    bars = {
        "FLOPs / forward": (ours["flops_to_forward"], 2.03),
        "FLOPs - derived": (ours["flops"] - limit["derived_flops"], 0),
        "output bytes - trainable - state": (
            ours["output_bytes"] - ours["kept_bytes"],
            SLACK,
        ),
    }
    if BY_HAND in figures:
        bars["FLOPs - by hand"] = (abs(ours["flops"] - figures[BY_HAND]["flops"]), 0)
        bars["time / by hand"] = (ours["time_to_hand"], 1.02)
    if FULL in figures:
        bars["time / full"] = (ours["time_to_full"], 0.70)
    return {
        name: {"found": found, "bar": bar, "ok": found <= bar}
        for name, (found, bar) in bars.items()
    }


HEAD = ("/hand", "/full", "FLOPs", "temp MB", "args MB", "outs MB", "peak MB", "compile s")
ROW = "{:36s} {:>6} {:>6} {:>7} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>9}"


def print_table(name: str, figures: dict, limit: dict, bars: dict) -> None:
    print(f"\n{name}, {limit['rows']} x {limit['length']} tokens; ", end="")
    print(f"forward {limit['forward_flops'] / 1e9:.2f} GFLOP, limit {limit['derived_ratio']:.4f}")
    print(ROW.format("variant", *HEAD, "state MB", "saved kB"))
    for each, row in figures.items():
        cells = [f"{row.get(key, math.nan):.3f}" for key in ("time_to_hand", "time_to_full")]
        cells += [f"{row['flops_to_forward']:.4f}"]
        kinds = ("temporary", "argument", "output", "peak")
        cells += [f"{row[f'{kind}_bytes'] / 1e6:.2f}" for kind in kinds]
        cells += [f"{row['compile_seconds']:.1f}", f"{row['state_bytes'] / 1e6:.2f}"]
        print(ROW.format(each, *cells, f"{row['saved_bytes'] / 1e3:.1f}"))
    for bar, row in bars.items():
        said = "ok" if row["ok"] else "not ok"
        print(f"    {bar:34s} {row['found']:10.6g} <= {row['bar']:<8g} {said}")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="else all of MiniLM")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--length", type=int)
    options = parser.parse_args()
    tables, limits, bars = {}, {}, {}
    for name in options.shape:
        small = name == "MiniLM-L6"
        variants = options.variants or (list(VARIANTS) if small else list(MAIN))
        variants = [OURS, *(each for each in variants if each != OURS)]
        tables[name], limits[name] = measure(name, variants, options)
        bars[name] = judge(tables[name], limits[name])
        print_table(name, tables[name], limits[name], bars[name])
        jax.clear_caches()
    figures = tables | {"limits": limits, "bars": bars, "settings": {"rounds": options.rounds}}
    print(f"written to {write_results('step', figures)}")


if __name__ == "__main__":
    main()
