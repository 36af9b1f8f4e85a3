"""What XLA is asked for when it compiles a step, and where for: on a CPU, to keep barriers."""

from __future__ import annotations

import os
from typing import Any

import jax
from jax.sharding import AbstractMesh

_PASSES = "xla_disable_hlo_passes"
# In jax 0.10, XLA's passes for a CPU take `jax.lax.optimization_barrier` out before they merge
# equal computations and fuse: what `jax.checkpoint` has computed again is merged with the first.
_REMOVES_BARRIERS = "cse_barrier_expander"
# Up to jax 0.11.1 a bfloat16 array is widened to float32 to be sliced on a CPU. In a loop over
# layers or a vocabulary this pass does that to the whole of it before the loop.
_WIDENS_BEFORE_LOOPS = "while-loop-invariant-code-motion"
_KEEPS_BFLOAT16 = (0, 11, 2)


def compiler_options() -> dict[str, str]:
    """Gives options for `jax.jit(step, compiler_options=...)` under which barriers hold.

    On a CPU, XLA of jax 0.10 takes out the barriers that keep apart what is to be computed twice or
    once only: there `jax.checkpoint` and `remat=` store as much as without them, and the models
    compute the sines of rotary positions anew in each layer. It also widens the stacked bfloat16
    kernels of scanned layers to float32, all before the loop. With these options, and with jax 0.12
    without them too, none of this happens. `make_train_step` takes them by itself. Figures:
    docs/benchmarks/cpu.md.

    Returns:
        An empty dict where the default backend is no CPU, and where `XLA_FLAGS` already names
        passes to leave out, which the options would replace.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> double = jax.jit(lambda x: 2 * x, compiler_options=lnt.compiler_options())
        >>> double(jnp.ones(2)).tolist()
        [2.0, 2.0]
    """
    return options_for(jax.default_backend())


def options_for(platform: str) -> dict[str, str]:
    """`compiler_options` for a platform that need not be the default."""
    if platform != "cpu" or _PASSES in os.environ.get("XLA_FLAGS", ""):
        return {}
    passes = [_REMOVES_BARRIERS]
    if widens_bfloat16(platform):
        passes.append(_WIDENS_BEFORE_LOOPS)
    return {_PASSES: ",".join(passes)}


def widens_bfloat16(platform: str) -> bool:
    """Whether XLA there computes in float32 what it could in bfloat16: products, slices."""
    return platform == "cpu" and jax.__version_info__ < _KEEPS_BFLOAT16


def find_platform(leaves: list[Any]) -> str:
    """Where a program of these arguments is compiled for: "cpu", "gpu", "tpu"."""
    for leaf in leaves:
        sharding = getattr(leaf, "sharding", None)
        mesh = getattr(sharding, "mesh", None)
        if isinstance(sharding, jax.sharding.Sharding) and not isinstance(mesh, AbstractMesh):
            return next(iter(sharding.device_set)).platform
    return jax.default_backend()
