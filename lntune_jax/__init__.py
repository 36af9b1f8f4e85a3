"""LayerNorm tuning in JAX: train only the norms of a pretrained model, exactly and cheaply."""

import importlib as _importlib
from typing import Any as _Any

# Which leaves train.
from .config import LNTuningConfig as LNTuningConfig
from .errors import LNTuningError as LNTuningError
from .selection import Selection as Selection
from .selection import select as select
from .selection import partition_params as partition_params
from .partition import merge_params as merge_params
from .selection import report_params as report_params
from .selection import label_params as label_params
from .selection import label_groups as label_groups
from .selection import norm_modules as norm_modules
from .discovery import discover_norms as discover_norms

# How they train, and where they lie.
from .training import value_and_grad as value_and_grad
from .training import adamw as adamw
from .training import make_optimizer as make_optimizer
from .training import TrainState as TrainState
from .training import make_train_step as make_train_step
from .training import make_multi_step as make_multi_step
from .training import stack_states as stack_states
from .training import unstack_states as unstack_states
from .sharding import make_specs as make_specs
from .sharding import shard_params as shard_params

# What is kept of them.
from .adapters import Adapter as Adapter
from .adapters import save_adapter as save_adapter
from .adapters import load_adapter as load_adapter
from .adapters import restore_adapter as restore_adapter
from .peft import export_peft as export_peft
from .peft import import_peft as import_peft
from .peft import load_peft as load_peft

# What has a place of its own: lnt.training, lnt.models, lnt.bank, ...
_SUBMODULES = frozenset(
    {
        "adapters",
        "bank",
        "cli",
        "discovery",
        "errors",
        "hub",
        "integrations",
        "models",
        "peft",
        "selection",
        "training",
    }
)


def __getattr__(name: str) -> _Any:
    """Imports a public submodule when it is first used: they need more than JAX and Optax."""
    if name in _SUBMODULES:
        return _importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'lntune_jax' has no attribute {name!r}")
