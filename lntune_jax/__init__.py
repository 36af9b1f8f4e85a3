"""LayerNorm tuning in JAX: train only the norms of a pretrained model, exactly and cheaply."""

import importlib as _importlib
from typing import Any as _Any

from ._adapter import Adapter as Adapter
from ._adapter import load_adapter as load_adapter
from ._adapter import restore_adapter as restore_adapter
from ._adapter import save_adapter as save_adapter
from ._discover import discover_norms as discover_norms
from ._discovered import DiscoveredNorm as DiscoveredNorm
from ._discovered import DiscoveredNorms as DiscoveredNorms
from ._peft_export import export_peft as export_peft
from ._peft_import import import_peft as import_peft
from ._peft_import import load_peft as load_peft
from .config import LNTuningConfig as LNTuningConfig
from .errors import AdapterError as AdapterError
from .errors import ConfigError as ConfigError
from .errors import CopiedModuleWarning as CopiedModuleWarning
from .errors import DataError as DataError
from .errors import FreshWeightsWarning as FreshWeightsWarning
from .errors import LNTuningError as LNTuningError
from .errors import ModelError as ModelError
from .errors import PatternError as PatternError
from .errors import SelectionError as SelectionError
from .errors import ShardingError as ShardingError
from .errors import ShardingWarning as ShardingWarning
from .errors import TraceWarning as TraceWarning
from .errors import TreeError as TreeError
from .errors import UnmatchedPatternWarning as UnmatchedPatternWarning
from .errors import ZeroGradientWarning as ZeroGradientWarning
from .partition import Partition as Partition
from .partition import merge_params as merge_params
from .partition import partition_params as partition_params
from .selection.groups import label_groups as label_groups
from .selection.labels import label_params as label_params
from .selection.path_patterns import make_path_patterns as make_path_patterns
from .selection.report import ParamReport as ParamReport
from .selection.report import report_params as report_params
from .selection.types import norm_modules as norm_modules
from .sharding import make_specs as make_specs
from .sharding import shard_params as shard_params
from .training.allocator import keep_freed_memory as keep_freed_memory
from .training.compiling import compiler_options as compiler_options
from .training.gradients import value_and_grad as value_and_grad
from .training.many import stack_states as stack_states
from .training.many import unstack_states as unstack_states
from .training.optimizer import adamw as adamw
from .training.optimizer import make_optimizer as make_optimizer
from .training.products import accumulate_in_float32 as accumulate_in_float32
from .training.state import TrainState as TrainState
from .training.step import TrainStep as TrainStep
from .training.step import make_train_step as make_train_step

_SUBMODULES = frozenset(
    {
        "bank",
        "cli",
        "hub",
        "keras",
        "models",
        "nnx",
        "peft",
        "torchax",
        "training",
        "transformers4",
        "tunix",
    }
)


def __getattr__(name: str) -> _Any:
    """Imports a public submodule when it is first used: they need more than JAX and Optax."""
    if name in _SUBMODULES:
        return _importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'lntune_jax' has no attribute {name!r}")
