"""LayerNorm tuning in JAX."""

from ._errors import LNTuningError as LNTuningError
