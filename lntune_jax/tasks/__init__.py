"""What can be trained: a task is one file, and one row in `registry.TASKS`."""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from .base import LOSS as LOSS
    from .base import Evaluator as Evaluator
    from .base import FunctionTask as FunctionTask
    from .base import Metric as Metric
    from .base import ModelTask as ModelTask
    from .base import Task as Task
    from .causal_lm import CausalLM as CausalLM
    from .options import Columns as Columns
    from .options import Encoding as Encoding
    from .options import Language as Language
    from .options import Targets as Targets
    from .options import TaskOptions as TaskOptions
    from .registry import TASKS as TASKS
    from .text_classification import TextClassification as TextClassification
    from .text_similarity import TextSimilarity as TextSimilarity
    from .token_classification import TokenClassification as TokenClassification

# Imported when first used: the command line reads settings from here, and `--help` must not wait.
_PLACES = {
    "CausalLM": "causal_lm",
    "Columns": "options",
    "Encoding": "options",
    "Evaluator": "base",
    "FunctionTask": "base",
    "LOSS": "base",
    "Language": "options",
    "Metric": "base",
    "ModelTask": "base",
    "TASKS": "registry",
    "Targets": "options",
    "Task": "base",
    "TaskOptions": "options",
    "TextClassification": "text_classification",
    "TextSimilarity": "text_similarity",
    "TokenClassification": "token_classification",
}

__all__ = [
    "LOSS",
    "TASKS",
    "CausalLM",
    "Columns",
    "Encoding",
    "Evaluator",
    "FunctionTask",
    "Language",
    "Metric",
    "ModelTask",
    "Targets",
    "Task",
    "TaskOptions",
    "TextClassification",
    "TextSimilarity",
    "TokenClassification",
]


def __getattr__(name: str) -> _Any:
    if name in _PLACES:
        return getattr(_importlib.import_module(f".{_PLACES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
