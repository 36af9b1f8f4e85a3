"""LayerNorm tuning in JAX: train only the norms of a pretrained model, exactly and cheaply."""

import importlib as _importlib
from typing import Any as _Any

from ._adapter import Adapter as Adapter
from ._adapter import load_adapter as load_adapter
from ._adapter import restore_adapter as restore_adapter
from ._adapter import save_adapter as save_adapter
from ._allocator import keep_freed_memory as keep_freed_memory
from ._compiling import compiler_options as compiler_options
from ._config import LNTuningConfig as LNTuningConfig
from ._discover import discover_norms as discover_norms
from ._discovered import DiscoveredNorm as DiscoveredNorm
from ._discovered import DiscoveredNorms as DiscoveredNorms
from ._errors import AdapterError as AdapterError
from ._errors import ConfigError as ConfigError
from ._errors import CopiedModuleWarning as CopiedModuleWarning
from ._errors import DataError as DataError
from ._errors import FreshWeightsWarning as FreshWeightsWarning
from ._errors import LNTuningError as LNTuningError
from ._errors import ModelError as ModelError
from ._errors import PatternError as PatternError
from ._errors import SelectionError as SelectionError
from ._errors import ShardingError as ShardingError
from ._errors import ShardingWarning as ShardingWarning
from ._errors import TraceWarning as TraceWarning
from ._errors import TreeError as TreeError
from ._errors import UnmatchedPatternWarning as UnmatchedPatternWarning
from ._errors import ZeroGradientWarning as ZeroGradientWarning
from ._gradients import value_and_grad as value_and_grad
from ._groups import label_groups as label_groups
from ._labels import label_params as label_params
from ._many import stack_states as stack_states
from ._many import unstack_states as unstack_states
from ._module_types import norm_modules as norm_modules
from ._optimizer import adamw as adamw
from ._optimizer import make_optimizer as make_optimizer
from ._partition import Partition as Partition
from ._partition import merge_params as merge_params
from ._partition import partition_params as partition_params
from ._path_patterns import make_path_patterns as make_path_patterns
from ._peft_export import export_peft as export_peft
from ._peft_import import import_peft as import_peft
from ._peft_import import load_peft as load_peft
from ._products import accumulate_in_float32 as accumulate_in_float32
from ._report import ParamReport as ParamReport
from ._report import report_params as report_params
from ._sharding import make_specs as make_specs
from ._sharding import shard_params as shard_params
from ._train_state import TrainState as TrainState
from ._training import TrainStep as TrainStep
from ._training import make_train_step as make_train_step

_SUBMODULES = frozenset(
    {
        "bank",
        "checkpoint",
        "cli",
        "hub",
        "keras",
        "models",
        "nnx",
        "peft",
        "torchax",
        "transformers4",
        "tunix",
    }
)


def __getattr__(name: str) -> _Any:
    """Imports a public submodule when it is first used: they need more than JAX and Optax."""
    if name in _SUBMODULES:
        return _importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'lntune_jax' has no attribute {name!r}")
