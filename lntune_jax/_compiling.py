"""What XLA is asked for when it compiles a step: on a CPU, to keep barriers."""

from __future__ import annotations

import os

import jax

# In jax 0.10, XLA's passes for a CPU take `jax.lax.optimization_barrier` out before they merge
# equal computations and fuse: what `jax.checkpoint` has computed again is merged with the first.
_PASSES = "xla_disable_hlo_passes"
_REMOVES_BARRIERS = "cse_barrier_expander"


def compiler_options() -> dict[str, str]:
    """Gives options for `jax.jit(step, compiler_options=...)` under which barriers hold.

    On a CPU, XLA of jax 0.10 takes out the barriers that keep apart what is to be computed twice or
    once only: there `jax.checkpoint` and `remat=` store as much as without them, and the models
    compute the sines of rotary positions anew in each layer. With these options, and with jax 0.12
    without them too, neither happens. `make_train_step` takes them by itself. Figures:
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
    if jax.default_backend() != "cpu" or _PASSES in os.environ.get("XLA_FLAGS", ""):
        return {}
    return {_PASSES: _REMOVES_BARRIERS}
