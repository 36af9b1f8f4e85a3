"""One process of a run writes, and all of them learn whether it could.

Without that, a process could read what is not there yet, or wait for one that has failed.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from ..errors import AdapterError


def write_on_first_process(write: Callable[[], None]) -> None:
    """Calls `write` on the first process of the run; returns everywhere when it has ended.

    Raises:
        AdapterError: what `write` raised on the first process; elsewhere, that it failed.

    Example:
        >>> write_on_first_process(lambda: print("written"))
        written
    """
    if jax.process_count() == 1:
        write()
        return
    from jax.experimental import multihost_utils

    error: Exception | None = None
    if jax.process_index() == 0:
        try:
            write()
        except Exception as raised:
            error = raised
    failed = bool(multihost_utils.broadcast_one_to_all(np.asarray(error is not None)))
    if error is not None:
        raise error
    if failed:
        raise AdapterError("the first process could not write the adapter: see its error")
