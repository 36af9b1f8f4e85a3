"""On a CPU, memory that XLA frees after each step, kept for the next one."""

from __future__ import annotations

import ctypes

# malloc.h of glibc: option and value of each call of mallopt(3).
_SETTINGS = {
    "M_ARENA_MAX": (-8, 1),  # an arena of a thread cannot hold blocks this large
    "M_MMAP_MAX": (-4, 0),  # large blocks come from the heap, too
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),  # the heap does not shrink
    "M_TOP_PAD": (-2, 2**29),  # and grows by so many bytes at a time
}


def keep_freed_memory() -> bool:
    """Makes this process keep the memory it frees, so that XLA's steps on a CPU need no new pages.

    XLA takes one block for all temporaries of a program each time it runs. glibc gives a block of
    that size back to the system when it is freed, and the next step's pages are cleared anew, one
    fault for each 4 KiB. Call it once, before JAX computes anything. It holds for the whole
    process, which is as large as it ever was until it ends; on a GPU or TPU it changes nothing
    that matters. Figures: docs/benchmarks/cpu.md.

    Returns:
        Whether the C library took all the settings; False where it is not glibc.

    Example:
        >>> import lntune_jax as lnt
        >>> lnt.keep_freed_memory() in (True, False)
        True
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    taken = [set_option(*setting) == 1 for setting in _SETTINGS.values()]
    return all(taken)
