"""The tasks by the name that `--task` and an adapter's record have for them."""

from typing import Any

from . import causal_lm, text_classification

TASKS: dict[str, Any] = {each.NAME: each for each in (text_classification, causal_lm)}
