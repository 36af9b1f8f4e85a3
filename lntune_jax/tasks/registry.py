"""The tasks by the name that `--task` and an adapter's record have for them."""

from typing import Any

from . import causal_lm, text_classification, text_similarity, token_classification

TASKS: dict[str, Any] = {
    each.NAME: each
    for each in (text_classification, token_classification, causal_lm, text_similarity)
}


def task_of(record: Any) -> Any:
    """The task whose `Record` this is."""
    return next(each for each in TASKS.values() if isinstance(record, each.Record))
