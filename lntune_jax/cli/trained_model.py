"""A trained classifier again: its base model, the adapter in place, ready to label texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.batches import Rows, choose_lengths
from ..data.encode import encode_inputs, load_tokenizer, padding_of
from ..errors import ConfigError
from ..tasks import Encoding, causal_lm, text_classification
from ..tasks.loading import check_model_directory, load_classifier, position_limit
from ..tasks.text_classification import Classifier
from .described import Described


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

    task: text_classification.Record
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
        pairs: Sequence[str] | None = None,
    ) -> tuple[np.ndarray, int]:
        """Logits of texts, and how many programs were compiled for them.

        Args:
            texts: The texts.
            batch_size: Rows a batch.
            buckets: How many padded lengths there may be.
            advance: Called with the batches done and their total.
            pairs: The second texts, of a classifier of two.

        Returns:
            float32 array of shape (texts, labels), and a count.
        """
        import lntune_jax as lnt

        limit = min(self.task.max_length, position_limit(self.model, self.tokenizer))
        tokens, types = encode_inputs(self.tokenizer, texts, pairs, limit, self.model.config)
        rows = Rows(tokens, np.zeros(len(tokens), np.int32), types=types)
        lengths = choose_lengths(rows.lengths, buckets, limit)
        trainable, frozen = lnt.partition_params(self.params, self.config)
        classifier = Classifier(self.model.apply)
        padding = padding_of(self.tokenizer)
        logits = classifier.measure(trainable, frozen, rows, batch_size, lengths, padding, advance)
        return logits, classifier.compilations


def check_classifier(described: Described) -> None:
    """Refuse the adapter of a language model.

    Raises:
        ConfigError: It is one.
    """
    if isinstance(described.task, causal_lm.Record):
        raise ConfigError(
            f"{described.directory} is the adapter of a language model, which does not label "
            "texts; `lntune-jax evaluate` measures its perplexity"
        )


def load_trained(described: Described) -> TrainedModel:
    """Load a base model and put the adapter of a classifier in place.

    Raises:
        LNTuningError: If the base is missing or does not fit.
    """
    task, name = described.task, described.model
    assert isinstance(task, text_classification.Record)
    check_model_directory(name, described.revision)
    import lntune_jax as lnt

    tokenizer = load_tokenizer(name, described.revision)
    encoding = Encoding(
        pooling=task.pooling,
        dtype=task.dtype,
        quantize=described.quantize,
        new_head=task.new_head,
    )
    model = load_classifier(
        name, encoding, labels=len(task.labels), seed=task.seed, revision=described.revision
    )
    params = lnt.restore_adapter(described.directory, model.params)
    return TrainedModel(task, described.config, params, model, tokenizer)
