"""LayerNorm tuning in JAX: train only the norms of a pretrained model, exactly and cheaply."""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
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

# The same names for the running program, by the module that has them. Each is imported when it is
# first used: JAX and Optax take a second, and `lntune-jax --help` needs neither.
_HOMES = {
    "config": "LNTuningConfig",
    "errors": "LNTuningError",
    "selection": "Selection select partition_params report_params label_params label_groups "
    "norm_modules",
    "partition": "merge_params",
    "discovery": "discover_norms",
    "training": "value_and_grad adamw make_optimizer TrainState make_train_step make_multi_step "
    "stack_states unstack_states",
    "sharding": "make_specs shard_params",
    "adapters": "Adapter save_adapter load_adapter restore_adapter",
    "peft": "export_peft import_peft load_peft",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

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
        "tasks",
        "trainer",
        "training",
    }
)


__all__ = list(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> _Any:
    """Imports a public name or submodule when it is first used."""
    if name == "__version__":  # pyproject.toml's, as it was installed
        return _importlib.import_module("importlib.metadata").version("lntune-jax")
    if name in _SUBMODULES:
        return _importlib.import_module(f".{name}", __name__)
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lntune_jax' has no attribute {name!r}")
    value = getattr(_importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF, *_SUBMODULES})
