"""LayerNorm tuning in JAX: train only the norms of a pretrained model, exactly and cheaply."""

import importlib as _importlib
from typing import Any as _Any

# What trains.
from .config import LNTuningConfig as LNTuningConfig
from .selection import Selection as Selection
from .selection import label_groups as label_groups
from .selection import label_params as label_params
from .selection import norm_modules as norm_modules
from .selection import partition_params as partition_params
from .selection import report_params as report_params
from .selection import select as select

from ._discover import discover_norms as discover_norms  # isort: skip
from .partition import merge_params as merge_params  # isort: skip

# Where it lies.
from .sharding import make_specs as make_specs
from .sharding import shard_params as shard_params

# How it trains.
from .training import TrainState as TrainState  # isort: skip
from .training import adamw as adamw
from .training import make_multi_step as make_multi_step
from .training import make_optimizer as make_optimizer
from .training import make_train_step as make_train_step
from .training import stack_states as stack_states
from .training import unstack_states as unstack_states
from .training import value_and_grad as value_and_grad

# What is kept of it.
from ._adapter import Adapter as Adapter  # isort: skip
from ._adapter import load_adapter as load_adapter
from ._adapter import restore_adapter as restore_adapter
from ._adapter import save_adapter as save_adapter
from ._peft_export import export_peft as export_peft
from ._peft_import import import_peft as import_peft
from ._peft_import import load_peft as load_peft

from .errors import LNTuningError as LNTuningError  # isort: skip

_SUBMODULES = frozenset(
    {
        "bank",
        "cli",
        "errors",
        "hub",
        "keras",
        "models",
        "nnx",
        "peft",
        "selection",
        "torchax",
        "training",
        "tunix",
    }
)


def __getattr__(name: str) -> _Any:
    """Imports a public submodule when it is first used: they need more than JAX and Optax."""
    if name in _SUBMODULES:
        return _importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'lntune_jax' has no attribute {name!r}")
