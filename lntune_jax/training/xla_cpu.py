"""What XLA on a CPU is asked for, so that a step there costs what it should.

Nothing here is public: `make_train_step` and the command line do it by themselves, and a GPU or TPU
needs none of it. Each part says when it can go. Figures: docs/benchmarks/cpu.md.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import jax
from jax.sharding import AbstractMesh

_PASSES = "xla_disable_hlo_passes"
# Can go with jax 0.12, which keeps them. In jax 0.10 and 0.11, XLA's passes for a CPU take
# `jax.lax.optimization_barrier` out before they merge equal computations and fuse: what
# `jax.checkpoint` has computed again is merged with the first, and stored.
_REMOVES_BARRIERS = "cse_barrier_expander"
# Can go with jax 0.11.2. Before, a bfloat16 array is widened to float32 to be sliced on a CPU: in a
# loop over layers or a vocabulary this pass does that to the whole of it before the loop.
_WIDENS_BEFORE_LOOPS = "while-loop-invariant-code-motion"
_KEEPS_BFLOAT16 = (0, 11, 2)

# malloc.h of glibc: option and value of each call of mallopt(3).
_MALLOC_SETTINGS = {
    "M_ARENA_MAX": (-8, 1),  # an arena of a thread cannot hold blocks this large
    "M_MMAP_MAX": (-4, 0),  # large blocks come from the heap, too
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),  # the heap does not shrink
    "M_TOP_PAD": (-2, 2**29),  # and grows by so many bytes at a time
}


def compiler_options() -> dict[str, str]:
    """Options for `jax.jit(function, compiler_options=...)` under which barriers hold.

    Empty where the default backend is no CPU, and where `XLA_FLAGS` already names passes to leave
    out, which the options would replace.
    """
    return options_for(jax.default_backend())


def options_for(platform: str) -> dict[str, str]:
    """`compiler_options` for a platform that need not be the default."""
    if platform != "cpu" or _PASSES in os.environ.get("XLA_FLAGS", ""):
        return {}
    passes = [_REMOVES_BARRIERS]
    if jax.__version_info__ < _KEEPS_BFLOAT16:
        passes.append(_WIDENS_BEFORE_LOOPS)
    return {_PASSES: ",".join(passes)}


def find_platform(leaves: list[Any]) -> str:
    """Where a program of these arguments is compiled for: "cpu", "gpu", "tpu"."""
    for leaf in leaves:
        sharding = getattr(leaf, "sharding", None)
        mesh = getattr(sharding, "mesh", None)
        if isinstance(sharding, jax.sharding.Sharding) and not isinstance(mesh, AbstractMesh):
            return next(iter(sharding.device_set)).platform
    return jax.default_backend()


def keep_freed_memory() -> bool:
    """Makes this process keep the memory it frees, so that XLA's steps on a CPU need no new pages.

    XLA takes one block for all temporaries of a program each time it runs. glibc gives a block of
    that size back to the system when it is freed, and the next step's pages are cleared anew, one
    fault for each 4 KiB. This holds for the whole process, which is as large as it ever was until
    it ends. Needed with every version of jax so far (0.12 too); it can go when XLA on a CPU keeps
    a pool of its own.

    Returns:
        Whether the C library took all the settings; False where it is not glibc.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    taken = [set_option(*setting) == 1 for setting in _MALLOC_SETTINGS.values()]
    return all(taken)
