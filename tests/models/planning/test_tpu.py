"""Steps of a tiny Llama, compiled for TPUs: needs libtpu (`make tpu`), and no TPU."""

import importlib.util
import os
import subprocess
import sys

import pytest

import lntune_jax as lnt
from lntune_jax.models.planning.compiled import Request, compile_apart
from tests.support.planning import TINY

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="libtpu, the compiler for TPUs, is not installed: make tpu",
    ),
]


def test_a_step_that_fits():
    before = dict(os.environ)
    found = lnt.models.plan(TINY, chips="v5e-8", batch=8, length=96, remat="full")
    assert found.fits
    assert dict(os.environ) == before
    step = found.steps["ln"]
    assert not step.notes
    assert step.memory == 15.75 * 2**30
    assert step.arguments < 2**20
    # Forward, once more, and back: each with attention's products besides the kernels'.
    assert 2.5 < found.passes(step) < 4
    assert sum(each.sent for each in step.sent.values()) > 0
    assert step.square[0].endswith("96,96]")
    assert "fits" in str(found)


def test_attention_holds_no_scores_and_the_backward_pass_computes_nothing_twice():
    """Two layers of Llama 2 7B's shape: what each adds, times 32, is what its step holds."""
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
    config = TINY | sizes | {"num_key_value_heads": 32, "head_dim": 128, "num_hidden_layers": 2}
    found = lnt.models.plan(config, chips="v5e-8", batch=8, length=2048)
    step = found.steps["ln"]
    assert step.has_no_square
    assert found.passes(step) < 2.03
    # A layer's two states, queries, keys, values and their mixture, and the MLP's two inner states.
    kept = 2 * 2048 * (6 * 4096 + 2 * 11008)
    assert step.temporaries < 2 * 1.05 * kept + 2 * 2**28
    assert sum(each.sent for kind, each in step.sent.items() if "reduce" in kind) < 2**18


def test_a_step_that_does_not_fit():
    sizes = {"batch": 256, "length": 4096, "search": False, "attention": "xla"}
    found = lnt.models.plan(TINY, chips="v5e-8", mesh={"data": 8}, **sizes)
    assert not found.fits
    assert found.steps["ln"].needed > found.steps["ln"].memory == 15.75 * 2**30
    assert found.fitting is None
    assert "It does not fit" in str(found)


def test_the_command_says_what_it_does_on_stderr():
    words = ["plan", "tests/reference/decoders/llama", "--chips", "v5e-1", "--length", "16"]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-m", "lntune_jax", *words],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("llama: ")
    lines = done.stderr.splitlines()
    assert lines[0] == "compiling ln for v5e-1: 1 x 16 tokens, remat none"
    assert len(lines) == 2, done.stderr


def test_what_a_process_refuses_is_said_here():
    request = Request(TINY, {"remat": "all"}, "ln", "v5e", 8, {"fsdp": 8}, 8, 96)
    with pytest.raises(lnt.errors.ModelError, match=r"v5e-8 does not compile: .*remat is 'all'"):
        compile_apart(request)
