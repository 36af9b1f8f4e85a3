"""What a compiled training step computes, gives out and copies; how often it is compiled.

FLOPs are those of the matmuls, loops counted as often as they turn, and must be the limit that
`tests/support/step_limit.py` derives, to the last one: a weight gradient, or a chunk of the
vocabulary computed twice, would be seen. The same counts of steps with mistakes show it.
"""

import re

import jax
import optax
import pytest

from lntune_jax.models.planning.program import count_flops
from tests.support.step_limit import Limit, find_limit
from tests.support.step_problems import make_problem
from tests.support.step_variants import (
    by_hand,
    jit_step,
    make_run,
    masked,
    ready,
    split,
    whole_tree,
)

# No product of activations has the shape of a kernel.
COMMON = {"vocab_size": 600, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 1}
LLAMA = COMMON | {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}
CONFIGS = {
    "bert": COMMON | {"model_type": "bert", "num_attention_heads": 4},
    "llama": LLAMA | {"tie_word_embeddings": True},
    "gemma2": LLAMA | {"model_type": "gemma2", "head_dim": 12, "sliding_window": 8},
    "gpt2": {"model_type": "gpt2", "vocab_size": 600, "n_embd": 48, "n_layer": 1, "n_head": 4},
}
ROWS, LENGTH = 4, 24
# LLVM need not optimise what is only counted; XLA's own passes stay. With one thread, as the tests
# run, XLA would transpose kernels for products of as few rows as a first token gives here.
QUICK = {"xla_backend_optimization_level": "0", "xla_cpu_multi_thread_eigen": True}


@pytest.fixture(autouse=True)
def _usual_promotion():
    with jax.numpy_dtype_promotion("standard"):  # Optax mixes weak floats and integers
        yield


def make(name, **options):
    config = dict(CONFIGS[name])
    if options.get("scan_layers"):
        config |= {"n_layer" if name == "gpt2" else "num_hidden_layers": 2}
    return make_problem(config, ROWS, LENGTH, **options)


def compile_step(variant, problem):
    (lowered,) = variant.lower(problem.batch)
    return lowered.compile(compiler_options=QUICK)


def count(compiled):
    return count_flops(compiled.as_text())


def limit_of(problem):
    return find_limit(problem.model, ROWS, LENGTH, problem.config.modules_to_save or ())


def extra_outputs(compiled, variant):
    """Bytes given out beside the trainable leaves and the optimizer's state."""
    own = jax.tree.leaves(variant.arguments[:2])
    return compiled.memory_analysis().output_size_in_bytes - sum(leaf.nbytes for leaf in own)


def copied_kernels(compiled, problem):
    """Copies in a program of a frozen argument, or of anything with the shape of a kernel."""
    shapes = set()
    for path, leaf in jax.tree_util.tree_flatten_with_path(problem.params)[0]:
        if path[-1].key in ("kernel", "embedding") and path[0].key != "classifier":
            shapes |= {tuple(sorted(leaf.shape)), tuple(sorted(leaf.shape[-2:]))}
    found = re.findall(r"= \w+\[([\d,]+)\]\S* copy\((%\S+?)[),]", compiled.as_text())
    sizes = [(tuple(sorted(int(n) for n in dims.split(","))), name) for dims, name in found]
    return [
        name
        for size, name in sizes
        if name.startswith("%frozen") or (size in shapes and not name.startswith("%trainable"))
    ]


@pytest.mark.parametrize(
    ("name", "scan_layers"),
    [*((name, False) for name in CONFIGS), ("llama", True), ("gpt2", True)],
)
def test_a_step_computes_the_limit_and_copies_nothing(name, scan_layers):
    problem = make(name, **({"scan_layers": True} if scan_layers else {}))
    limit, ours = limit_of(problem), split(problem)
    compiled = compile_step(ours, problem)
    forward = jax.jit(problem.loss).lower(problem.params, problem.batch)
    forward = forward.compile(compiler_options=QUICK)
    assert count(forward) == limit.forward
    assert count(compiled) == limit.step
    assert not copied_kernels(compiled, problem)
    # A pointer for each output, and the loss.
    assert 0 < extra_outputs(compiled, ours) < 8 * 150 < 4 * 48 * 24
    if name in ("bert", "llama"):
        assert count(compile_step(by_hand(problem), problem)) == limit.step


@pytest.mark.long
@pytest.mark.parametrize("scan_layers", [False, True], ids=["apart", "scanned"])
def test_remat_computes_the_layers_again_and_nothing_else(scan_layers):
    counts = {}
    products = () if scan_layers else ("dots_with_no_batch_dims_saveable",)
    for remat in ("none", *products, "full"):
        problem = make("llama", scan_layers=scan_layers, remat=remat)
        limit: Limit = limit_of(problem)
        (lowered,) = split(problem).lower(problem.batch)
        # The CPU compiler takes out the barriers that keep recomputed work apart otherwise.
        keep = {"xla_disable_hlo_passes": "cse_barrier_expander"}
        compiled = lowered.compile(compiler_options=keep | QUICK)
        counts[remat] = count(compiled)
        assert not copied_kernels(compiled, problem)
    assert limit.step <= counts["none"] < counts["full"]
    assert counts["full"] <= limit.step + limit.forward - limit.head
    for remat in products:
        assert limit.step <= counts[remat] <= limit.step + limit.attention


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("float32", {"accumulate": 2}),
        ("bfloat16", {"clip_norm": 1.0, "skip_nonfinite": True}),
    ],
)
def test_the_ready_step_computes_no_more(dtype, options):
    """With masters over a bfloat16 base, metrics and flags, and with accumulation."""
    problem = make("llama", dtype=dtype)
    variant = ready(problem, **options)
    compiled = compile_step(variant, problem)
    # A row's last token predicts nothing, in parts as in the whole: the same products.
    assert count(compiled) == limit_of(problem).step
    assert 0 < extra_outputs(compiled, variant) < 8 * 150


def test_a_weight_gradient_is_seen():
    problem = make("llama")
    limit = limit_of(problem)
    logging = whole_tree(problem, masked(problem), optax.tree.norm)
    found = count(compile_step(logging, problem))
    layers = limit.forward - limit.head - limit.attention
    assert found >= limit.step + layers + limit.head  # of the kernels, and of the table


def test_a_copied_frozen_leaf_is_seen():
    problem = make("llama")
    ours = split(problem)

    def step(trainable, state, frozen, batch):
        return ours.step(trainable, state, frozen, batch), frozen

    wrong = jit_step(step, *ours.arguments)
    compiled = compile_step(wrong, problem)
    assert extra_outputs(compiled, wrong) > sum(
        leaf.nbytes for leaf in jax.tree.leaves(ours.arguments[2])
    )
    assert copied_kernels(compiled, problem)


def count_compilations(run, steps=2):
    """Programs compiled by the first call, and by all later ones."""
    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run()
        first = len(compiled)
        for _ in range(steps):
            run()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return first, len(compiled) - first


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_compilation_over_several_steps(dtype):
    problem = make("llama", dtype=dtype)
    if dtype == "float32":
        variant = split(problem)
    else:
        variant = ready(problem, accumulate=2, skip_nonfinite=True)
    first, later = count_compilations(make_run(variant, problem.batch))
    assert first >= 1
    assert later == 0


def test_a_second_compilation_is_seen():
    problem = make("llama")
    ours = split(problem)
    held = list(ours.arguments)
    # A state that begins as a Python number comes back as an array: another program.
    held[1] = jax.tree.map(lambda leaf: leaf if leaf.ndim else 0, held[1])

    def run():
        held[0], held[1], _ = ours.step(*held, problem.batch)

    first, later = count_compilations(run)
    assert first >= 1
    assert later >= 1
