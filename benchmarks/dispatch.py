"""What does a call of a jitted step cost before the device works?

A step of so many norms whose leaves are tiny, so that a call is its dispatch: with the frozen half
as one would split it by hand (`None` in place of each trainable leaf), with ours (placeholders),
and `make_train_step`'s own call, beside a `jax.jit` of the same function, `step.function`. And an
eager update of a tree: `make_optimizer`, beside `optax.multi_transform` with labels that are ready.
Ratios are medians over rounds, in turns.
"""

import argparse
import statistics

import jax
import jax.numpy as jnp
import optax
from _results import write_results
from _timing import time_in_turns

import lntune_jax as lnt

HAND, OURS = "split by hand (None)", "lntune_jax, jitted by hand"
OWN_JIT, READY = "step.function, jitted by hand", "make_train_step"
OPTIMIZER = optax.adam(1e-3)
CONFIG = lnt.LNTuningConfig(target_modules=["norm"])
EAGER_HAND, EAGER = "multi_transform, eager, labels ready", "make_optimizer, eager"
BASES = {OURS: HAND, READY: OWN_JIT, EAGER: EAGER_HAND}


def make_params(norms: int) -> dict:
    return {
        f"layer_{i}": {"norm": {"scale": jnp.ones(2)}, "fc": {"kernel": jnp.ones((2, 2))}}
        for i in range(norms)
    }


def step(trainable, moments, frozen):
    """Next to no work; the frozen half is an argument, as in training."""
    del frozen
    return jax.tree.map(lambda leaf: leaf + 1, (trainable, moments))


def loss_fn(params):
    return sum(layer["norm"]["scale"].sum() for layer in params.values())


def make_runs(norms: int, calls: int, is_reversed: bool) -> dict:
    params = make_params(norms)
    trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig())
    by_hand = {name: layer | {"norm": {"scale": None}} for name, layer in params.items()}

    def repeat(function, *state, frozen):
        held = [state]

        def run():
            for _ in range(calls):
                held[0] = function(*held[0], frozen)
            jax.block_until_ready(held[0])

        return run

    def copies():
        return jax.tree.map(jnp.copy, (trainable, OPTIMIZER.init(trainable)))

    ready = lnt.make_train_step(loss_fn, OPTIMIZER)
    own_jit = jax.jit(ready.function, donate_argnums=0)

    def take(state, frozen):
        return (ready(state, frozen)[0],)

    def take_own(state, frozen):
        return (own_jit(state, frozen)[0],)

    def state():
        return lnt.TrainState.create(trainable, OPTIMIZER)

    makers = {
        HAND: lambda: repeat(jax.jit(step, donate_argnums=(0, 1)), *copies(), frozen=by_hand),
        OURS: lambda: repeat(jax.jit(step, donate_argnums=(0, 1)), *copies(), frozen=frozen),
        OWN_JIT: lambda: repeat(take_own, state(), frozen=frozen),
        READY: lambda: repeat(take, state(), frozen=frozen),
    }
    order = list(makers)[::-1] if is_reversed else list(makers)
    return {name: makers[name]() for name in order}


def make_eager_runs(norms: int) -> dict:
    """Updates outside `jax.jit`, of a tree of three leaves a layer."""
    params = {name: own | {"bias": jnp.ones(2)} for name, own in make_params(norms).items()}
    labels = lnt.label_params(params, CONFIG)
    frozen = {"trainable": OPTIMIZER, "frozen": optax.set_to_zero()}
    optimizers = {
        EAGER_HAND: optax.multi_transform(frozen, labels),
        EAGER: lnt.make_optimizer(OPTIMIZER, CONFIG),
    }

    def repeat(tx):
        held = [tx.init(params)]

        def run():
            updates, held[0] = tx.update(params, held[0], params)
            jax.block_until_ready((updates, held[0]))

        return run

    return {name: repeat(tx) for name, tx in optimizers.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--norms", type=int, default=160)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=101)
    options = parser.parse_args()
    times: dict[str, list[float]] = {}
    # Where their leaves lie in memory depends on which is made first, and shows: once each way.
    for is_reversed in (False, True):
        runs = make_runs(options.norms, options.calls, is_reversed)
        for name, seconds in time_in_turns(runs, options.rounds, warm_up=3).items():
            times[name] = times.get(name, []) + seconds
    eager = time_in_turns(make_eager_runs(240), options.rounds // 4, warm_up=3)
    times |= {name: [s * options.calls for s in seconds] for name, seconds in eager.items()}
    figures: dict[str, dict] = {}
    for name, seconds in times.items():
        base = BASES.get(name, name)
        ratios = [a / b for a, b in zip(seconds, times[base], strict=True)]
        figures[name] = {
            "least_seconds": min(seconds) / options.calls,
            "ratio": statistics.median(ratios),
            "beside": base,
        }
        row = figures[name]
        print(f"{name:32s} {row['least_seconds'] * 1e6:7.0f} us {row['ratio']:6.3f} of {base}")
    path = write_results("dispatch", {"steps": figures, "settings": vars(options)})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
