"""Times of functions that take turns, so that a busy machine slows all of them alike."""

import random
import statistics
import time
from collections.abc import Callable, Mapping


def time_in_turns(
    runs: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each function in each round; every one runs once a round.

    A function returns when its work is done (`jax.block_until_ready`).
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    order, shuffled = list(runs), random.Random(0)
    for turn in range(rounds + warm_up):
        shuffled.shuffle(order)  # so that none always follows another
        for name in order:
            start = time.perf_counter()
            runs[name]()
            if turn >= warm_up:
                times[name].append(time.perf_counter() - start)
    return times


def median_ratio(times: Mapping[str, list[float]], name: str, base: str) -> float:
    """The median over the rounds of one function's time to another's in the same round."""
    return statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))
