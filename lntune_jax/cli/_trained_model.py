"""A trained classifier again: its base model, the adapter in place, ready to label texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ._base import check_model_directory, load_base, position_limit
from ._batches import Rows, choose_lengths
from ._encode import encode, load_tokenizer, padding_of
from ._labels import Task, load_task
from ._language_task import find_language_task
from ._programs import Classifier
from ._trained_settings import Trained


@dataclass(frozen=True)
class TrainedModel:
    """What is needed to label texts.

    Attributes:
        task: Label names and how texts are read.
        config: The adapter's config.
        params: The model's tree with the adapter in place.
        model: The base model.
        tokenizer: Its tokenizer.
    """

    task: Task
    config: Any
    params: Any
    model: Any
    tokenizer: Any

    def logits(
        self,
        texts: Sequence[str],
        batch_size: int,
        buckets: int,
        advance: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple[np.ndarray, int]:
        """Logits of texts, and how many programs were compiled for them.

        Args:
            texts: The texts.
            batch_size: Rows a batch.
            buckets: How many padded lengths there may be.
            advance: Called with the batches done and their total.

        Returns:
            float32 array of shape (texts, labels), and a count.
        """
        import lntune_jax as lnt

        limit = min(self.task.max_length, position_limit(self.model.config, self.tokenizer))
        tokens = encode(self.tokenizer, texts, limit, self.model.config.vocab_size)
        rows = Rows(tokens, np.zeros(len(tokens), np.int32))
        lengths = choose_lengths(rows.lengths, buckets, limit)
        trainable, frozen = lnt.partition_params(self.params, self.config)
        classifier = Classifier(self.model.apply)
        padding = padding_of(self.tokenizer)
        logits = classifier.logits(trainable, frozen, rows, batch_size, lengths, padding, advance)
        return logits, classifier.compilations


def find_task(trained: Trained) -> tuple[Task, Path]:
    """The task and the adapter's directory that the flags name.

    Raises:
        ConfigError: If neither --run nor --adapter is given.
        DataError: If there is no `labels.json`.
    """
    if trained.run is None and trained.adapter is None:
        raise ConfigError("give --run, an output directory of `lntune-jax train`, or --adapter")
    if trained.adapter is not None:
        adapter = trained.adapter.expanduser().resolve()
    else:
        assert trained.run is not None
        adapter = trained.run.expanduser().resolve() / "adapter"
    if find_language_task(trained) is not None:
        raise ConfigError(
            f"{adapter} is the adapter of a language model, which does not label texts; "
            "`lntune-jax evaluate` measures its perplexity"
        )
    # An adapter of a sweep lies one level deeper.
    above = adapter.parent.parent if adapter.parent.name == "adapters" else adapter.parent
    beside = (trained.run or above).expanduser().resolve() / "labels.json"
    return load_task(trained.labels or beside), adapter


def load_trained(trained: Trained) -> TrainedModel:
    """Load a base model and put an adapter in place.

    Raises:
        LNTuningError: If the base, the adapter or `labels.json` is missing or does not fit.
    """
    task, adapter = find_task(trained)
    if not adapter.is_dir():
        raise ConfigError(f"{adapter} is not a directory; has the run in it been finished?")
    name = trained.model or task.model
    check_model_directory(name)
    import lntune_jax as lnt

    _, config = lnt.load_adapter(adapter)
    tokenizer = load_tokenizer(name)
    model = load_base(
        name,
        labels=len(task.labels),
        pooling=task.pooling,
        dtype=task.dtype,
        seed=task.seed,
        quantize=task.quantize,
    )
    params = lnt.restore_adapter(adapter, model.params)
    return TrainedModel(task, config, params, model, tokenizer)
