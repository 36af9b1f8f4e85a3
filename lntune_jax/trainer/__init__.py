"""Training without writing the loop: `fit`, `fit_many`, callbacks, and the files of a run."""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from .callbacks import Callback as Callback
    from .callbacks import JsonLines as JsonLines
    from .callbacks import RunInfo as RunInfo
    from .callbacks import TensorBoard as TensorBoard
    from .callbacks import Trackio as Trackio
    from .callbacks import WeightsAndBiases as WeightsAndBiases
    from .callbacks import read_metrics as read_metrics
    from .fitting import Result as Result
    from .fitting import fit as fit
    from .fitting import fit_many as fit_many
    from .history import Evaluation as Evaluation
    from .recipe import Recipe as Recipe
    from .stopping import Stops as Stops

# Imported when first used: the command line reads settings from here, and `--help` must not wait.
_PLACES = {
    "Callback": "callbacks",
    "Evaluation": "history",
    "JsonLines": "callbacks",
    "Recipe": "recipe",
    "Result": "fitting",
    "RunInfo": "callbacks",
    "Stops": "stopping",
    "TensorBoard": "callbacks",
    "Trackio": "callbacks",
    "WeightsAndBiases": "callbacks",
    "fit": "fitting",
    "fit_many": "fitting",
    "read_metrics": "callbacks",
}

__all__ = [
    "Callback",
    "Evaluation",
    "JsonLines",
    "Recipe",
    "Result",
    "RunInfo",
    "Stops",
    "TensorBoard",
    "Trackio",
    "WeightsAndBiases",
    "fit",
    "fit_many",
    "read_metrics",
]


def __getattr__(name: str) -> _Any:
    if name in _PLACES:
        return getattr(_importlib.import_module(f".{_PLACES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
