"""How a part of `gpu.py`, a process of its own, hands over figures as it finds them."""

import json
import re
import statistics
import sys
import time
from collections.abc import Callable

MARK = "FIGURES "


def emit(**figures: object) -> None:
    """Hands over figures at once: a later failure or a kill loses none of them."""
    print(MARK + json.dumps(figures), flush=True)


def read_figures(output: str) -> dict:
    """All that a part has handed over."""
    figures: dict = {}
    for line in output.splitlines():
        if line.startswith(MARK):
            try:
                figures |= json.loads(line.removeprefix(MARK))
            except json.JSONDecodeError:  # killed while it wrote
                continue
    return figures


def describe(error: BaseException) -> str:
    """An error's first line, with no folders of this machine in it."""
    lines = str(error).strip().splitlines()
    return clean(f"{type(error).__name__}: {lines[0] if lines else ''}")


def clean(text: str) -> str:
    """A line fit for a table: short, and without folders."""
    return re.sub(r"(/[\w.+@-]+){2,}", "...", text)[:200]


def run_part(part: Callable[[dict], None]) -> None:
    """Runs a part with the specification on the command line."""
    try:
        part(json.loads(sys.argv[1]))
    except Exception as error:
        emit(error=describe(error))
        raise


def time_steps(step: Callable[[], None], wait: Callable[[], None], seconds: float) -> float:
    """Seconds of one step: the median of groups that are waited for once, as a loop would."""
    step()
    wait()
    start = time.perf_counter()
    step()
    wait()
    once = time.perf_counter() - start
    group = max(1, min(50, round(seconds / 3 / max(once, 1e-6))))
    found = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(group):
            step()
        wait()
        found.append((time.perf_counter() - start) / group)
    return statistics.median(found)


def find_largest(
    run: Callable[[int], float], bytes_of: Callable[[int], float], limit: float, first: int
) -> None:
    """Hands over the largest batch that fits: by two sizes' bytes, then by trying.

    Args:
        run: takes steps with a batch, and gives seconds of one; any error is "does not fit".
        bytes_of: the bytes of a step with a batch.
        limit: bytes that there are.
        first: a batch that fits.
    """
    few, more = bytes_of(first), bytes_of(2 * first)
    each = max((more - few) / first, 1.0)
    batch = max(first, int(first + (limit - few) / each))
    emit(bytes_per_row=round(each), predicted_batch=batch)
    while batch >= first:
        try:
            seconds = run(batch)
        except Exception as error:
            emit(last_refused=batch, refused_with=describe(error))
            batch = min(batch - 1, int(batch * 0.96))
            continue
        emit(largest_batch=batch, step_seconds=seconds)
        return
