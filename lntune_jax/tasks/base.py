"""What the trainer asks of a task: leaves, rows, a loss and an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from ..data.batches import PlannedBatch, make_planner
from ..errors import ConfigError
from ..messages import shorten


@dataclass(frozen=True)
class Metric:
    """A figure of an evaluation.

    Attributes:
        name: Its key in files and dictionaries.
        label: Its name for people.
        higher_is_better: Which way it improves.
        is_share: Whether it lies between 0 and 1 and is drawn as a percentage.

    Example:
        >>> Metric("accuracy", "accuracy", is_share=True).sign
        -1.0
    """

    name: str
    label: str
    higher_is_better: bool = True
    is_share: bool = False

    @property
    def sign(self) -> float:
        """What to multiply a value with so that the least is the best."""
        return -1.0 if self.higher_is_better else 1.0


LOSS = Metric("loss", "evaluation loss", higher_is_better=False)


class Evaluator(Protocol):
    """Compiled programs that measure leaves on rows.

    Example:
        >>> import jax.numpy as jnp, lntune_jax as lnt
        >>> task = FunctionTask(
        ...     {"norm": {"scale": jnp.ones(2)}}, lnt.LNTuningConfig(), lambda params, batch: 0.0,
        ...     lambda step: None, evaluate=lambda params: {"loss": params["norm"]["scale"].sum()},
        ... )
        >>> evaluator = task.evaluator(8)
        >>> evaluator(*lnt.partition_params(task.params, task.config))
        {'loss': 2.0}
    """

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        ...

    def __call__(self, trainable: Any, frozen: Any, rows: Any = None) -> dict[str, float]:
        """The figures of these leaves by name, `loss` among them; `rows` default to the task's."""
        ...

    def many(
        self,
        trainables: Any,
        frozen: Any,
        rows: Any = None,
        *,
        active: Sequence[bool],
        at_once: int | None = None,
    ) -> list[dict[str, float]]:
        """The same of several adapters, whose leaves have an axis of adapters first.

        Those that are not active get no figures. `at_once` of them share a pass, where the
        evaluator runs them together; `None` for all.
        """
        ...


class Task(Protocol):
    """What is trained, on what, and how it is measured.

    A task's file says all that is its own; the trainer and the command line know no task by name.

    Example:
        >>> from lntune_jax.tasks import CausalLM, FunctionTask, TextClassification
        >>> [hasattr(kind, "planner") for kind in (CausalLM, FunctionTask, TextClassification)]
        [True, True, True]
    """

    @property
    def params(self) -> Any:
        """The base model's tree."""
        ...

    @property
    def config(self) -> Any:
        """Which leaves train."""
        ...

    @property
    def name_map(self) -> Any:
        """Names of the tree's leaves, where they are not Hugging Face's."""
        ...

    @property
    def record(self) -> Mapping[str, Any]:
        """What each adapter says of itself: `save_adapter(..., task=record)`."""
        ...

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What an evaluation gives beside the loss; the first picks the adapter to keep."""
        ...

    @property
    def learning_rate(self) -> float:
        """The highest learning rate of the norms, where the recipe names none."""
        ...

    @property
    def evaluates_first(self) -> bool:
        """Whether the untouched base is measured too, and may be what is kept."""
        ...

    @property
    def training_rows(self) -> int:
        """Rows to train on."""
        ...

    @property
    def evaluation_rows(self) -> int:
        """Rows to evaluate on; 0 where nothing is evaluated."""
        ...

    @property
    def evaluation(self) -> Any:
        """The rows to evaluate on, as the evaluator takes them."""
        ...

    def loss_fn(self) -> Callable[..., Any]:
        """`loss_fn(params, batch, rng=None)`, a mean; with an `rng`, dropout is on."""
        ...

    def evaluator(self, batch_size: int) -> Evaluator:
        """A new evaluator, which has compiled nothing yet."""
        ...

    def epoch_steps(self, batch_size: int) -> int:
        """Batches in an epoch."""
        ...

    def planner(self, seed: int, batch_size: int) -> Callable[[int], PlannedBatch]:
        """A function from a step, from 0, to its batch's rows: the same whenever it is asked."""
        ...

    def assemble(self, planned: PlannedBatch, batch_size: int) -> tuple[Any, int]:
        """The arrays of one batch of training rows, and how many tokens it has."""
        ...

    @property
    def unit(self) -> str:
        """What `list_rows` counts: "row" or "line"."""
        ...

    def list_rows(self, planned: PlannedBatch) -> list[int]:
        """The rows of the data file, from 1, that are in a batch of training rows."""
        ...

    def start(self, seed: int) -> dict[str, Any]:
        """The trainable leaves that a run with this seed begins with, by path."""
        ...

    def left_as_drawn(self) -> list[str]:
        """Leaves that were drawn with the task's own seed and do not train."""
        ...


@dataclass(frozen=True)
class FunctionTask:
    """A task made of your own functions.

    Attributes:
        params: Any tree that `partition_params` takes.
        config: An `LNTuningConfig`.
        loss: `loss(params, batch)` or, with dropout, `loss(params, batch, rng=None)`: a mean, or a
            `WeightedLoss`.
        batch: From a step, from 0, to its batch. The same step must give the same batch, so that
            a resumed run goes on with what it would have seen.
        steps_per_epoch: Batches in an epoch.
        evaluate: From the merged tree to figures by name, `"loss"` among them; `None` keeps the
            last step's adapter.
        metrics: What `evaluate` gives beside the loss; the first picks the adapter to keep.
        learning_rate: Of the norms, where the recipe names none.
        name_map: As for `partition_params`.
        record: What the adapter says of itself.

    Example:
        >>> import jax.numpy as jnp, lntune_jax as lnt
        >>> params = {"norm": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}
        >>> def loss(params, batch):
        ...     return jnp.mean((batch * params["norm"]["scale"] - 2 * batch) ** 2)
        >>> task = FunctionTask(params, lnt.LNTuningConfig(), loss, lambda step: jnp.ones((2, 4)))
        >>> task.planner(0, 2)(3).rows.tolist(), task.evaluation_rows
        ([3], 0)
    """

    params: Any
    config: Any
    loss: Callable[..., Any]
    batch: Callable[[int], Any]
    steps_per_epoch: int = 1
    evaluate: Callable[[Any], Mapping[str, float]] | None = None
    metrics: tuple[Metric, ...] = ()
    learning_rate: float = 1e-3
    name_map: Any = None
    record: Mapping[str, Any] = field(default_factory=dict)
    evaluates_first: bool = False
    unit: str = "row"

    @property
    def training_rows(self) -> int:
        """Batches in an epoch: what a row is, only `batch` knows."""
        return self.steps_per_epoch

    @property
    def evaluation_rows(self) -> int:
        """1 where something is evaluated, else 0."""
        return int(self.evaluate is not None)

    @property
    def evaluation(self) -> Any:
        """Nothing: what the rows are, only `evaluate` knows."""
        return None

    def loss_fn(self) -> Callable[..., Any]:
        """The loss."""
        return self.loss

    def evaluator(self, batch_size: int) -> Evaluator:
        """Calls `evaluate` with the merged tree."""
        del batch_size
        return _FunctionEvaluator(self)

    def epoch_steps(self, batch_size: int) -> int:
        """Batches in an epoch."""
        del batch_size
        return self.steps_per_epoch

    def planner(self, seed: int, batch_size: int) -> Callable[[int], PlannedBatch]:
        """A batch is its step."""
        del seed, batch_size
        return lambda step: PlannedBatch(np.asarray([step]), 0)

    def assemble(self, planned: PlannedBatch, batch_size: int) -> tuple[Any, int]:
        """The batch of a step; its tokens are not counted."""
        del batch_size
        return self.batch(int(planned.rows[0])), 0

    def list_rows(self, planned: PlannedBatch) -> list[int]:
        """No rows: only `batch` knows them."""
        del planned
        return []

    def start(self, seed: int) -> dict[str, Any]:
        """The tree's own leaves, whatever the seed."""
        del seed
        return start_leaves(self)

    def left_as_drawn(self) -> list[str]:
        """None: nothing is drawn."""
        return []


class _FunctionEvaluator:
    compilations = 0

    def __init__(self, task: FunctionTask):
        self._task = task

    def __call__(self, trainable: Any, frozen: Any, rows: Any = None) -> dict[str, float]:
        import lntune_jax as lnt

        assert self._task.evaluate is not None
        found = self._task.evaluate(lnt.merge_params(trainable, frozen))
        if not isinstance(found, Mapping):
            kind = type(found).__name__
            raise ConfigError(f"evaluate gives {kind}; expected figures by name, 'loss' among them")
        wanted = [LOSS.name, *(metric.name for metric in self._task.metrics)]
        missing = [name for name in wanted if name not in found]
        if missing:
            raise ConfigError(
                f"evaluate gives no {missing[0]!r}; expected figures named "
                f"{', '.join(map(repr, wanted))}, found {', '.join(map(repr, found)) or 'none'}"
            )
        return {name: _as_number(name, value) for name, value in found.items()}

    def many(
        self,
        trainables: Any,
        frozen: Any,
        rows: Any = None,
        *,
        active: Sequence[bool],
        at_once: int | None = None,
    ) -> list[dict[str, float]]:
        """One after another: `evaluate` gives numbers, which no program can."""
        del at_once
        each = (
            {path: leaf[n] for path, leaf in trainables.items()} if is_active else None
            for n, is_active in enumerate(active)
        )
        return [{} if own is None else self(own, frozen, rows) for own in each]


def _as_number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(
            f"evaluate gives {name!r} = {shorten(repr(value), 80)}; expected a number"
        ) from None


def start_leaves(task: Any) -> dict[str, Any]:
    """The trainable leaves of a task's own tree, by path."""
    import lntune_jax as lnt

    return lnt.partition_params(task.params, task.config, name_map=task.name_map)[0]


@dataclass(frozen=True)
class ModelTask:
    """What tasks over a model of `lntune_jax.models` share.

    Attributes:
        model: The base model.
        config: Which leaves train.
        training: Rows to train on; they have `lengths` and `list_numbers`.
        evaluation: Rows to evaluate on, or `None`.
        buckets: Padded lengths.
        padding: Token id of padding.
        record: What each adapter says of itself.
        mesh: The devices that share a batch, or `None` for one device.
        seed: The seed with which the model's new leaves were drawn.
        unit: What `list_rows` counts: rows of the data file, or its lines.

    Example:
        >>> from types import SimpleNamespace as Space
        >>> rows = Space(tokens=[[1, 2], [3]])
        >>> task = ModelTask(Space(params={}, name_map=None), None, rows, None, (8,), 0, {})
        >>> task.training_rows, task.evaluation_rows, task.epoch_steps(batch_size=2)
        (2, 0, 1)
    """

    model: Any
    config: Any
    training: Any
    evaluation: Any
    buckets: tuple[int, ...]
    padding: int
    record: Mapping[str, Any]
    mesh: Any = None
    seed: int = 0
    unit: str = "row"

    @property
    def params(self) -> Any:
        """The base model's tree."""
        return self.model.params

    @property
    def name_map(self) -> Any:
        """Names of the tree's leaves, where they are not Hugging Face's."""
        return self.model.name_map

    @property
    def training_rows(self) -> int:
        """Rows to train on."""
        return len(self.training.tokens)

    @property
    def evaluation_rows(self) -> int:
        """Rows to evaluate on."""
        return 0 if self.evaluation is None else len(self.evaluation.tokens)

    def program(self) -> Any:
        """A new program that measures rows, which has compiled nothing yet."""
        raise NotImplementedError

    def inputs(self, rows: Any) -> Any:
        """What the program is given of rows."""
        return rows

    def figures(self, found: Any, rows: Any) -> dict[str, float]:
        """The figures by name, `loss` among them, of what the program found in rows."""
        raise NotImplementedError

    def evaluator(self, batch_size: int) -> Evaluator:
        """Measures leaves on the evaluation rows, or on others."""
        return _ModelEvaluator(self, batch_size)

    def epoch_steps(self, batch_size: int) -> int:
        """Batches in an epoch."""
        return -(-self.training_rows // batch_size)

    def planner(self, seed: int, batch_size: int) -> Callable[[int], PlannedBatch]:
        """A function from a step to its batch's rows."""
        return make_planner(seed, self.training.lengths, batch_size, self.buckets)

    def list_rows(self, planned: PlannedBatch) -> list[int]:
        """The rows of the data file that are in a batch."""
        return self.training.list_numbers(planned.rows)

    def start(self, seed: int) -> dict[str, Any]:
        """The base's own leaves, and new ones drawn from the seed."""
        import jax.numpy as jnp

        from ..models.loading import draw

        leaves, model = start_leaves(self), self.model
        for path in model.fresh if seed != self.seed else ():
            if path in leaves:
                spread = model.settings.initializer_range
                drawn = draw(tuple(path.split(".")), leaves[path].shape, seed, spread)
                leaves[path] = jnp.asarray(drawn, model.dtype).astype(leaves[path].dtype)
        return leaves

    def left_as_drawn(self) -> list[str]:
        """Leaves that were drawn with the task's own seed and do not train."""
        trainable = start_leaves(self)
        drawn = [path for path in self.model.fresh if path.rpartition(".")[2] not in _CONSTANT]
        return [path for path in drawn if path not in trainable]


class _ModelEvaluator:
    def __init__(self, task: ModelTask, batch_size: int):
        self._task, self._batch_size, self._program = task, batch_size, task.program()

    @property
    def compilations(self) -> int:
        return self._program.compilations

    def __call__(self, trainable: Any, frozen: Any, rows: Any = None) -> dict[str, float]:
        task, rows = self._task, self._task.evaluation if rows is None else rows
        given = task.inputs(rows), self._batch_size, task.buckets, task.padding
        return task.figures(self._program.measure(trainable, frozen, *given), rows)

    def many(
        self,
        trainables: Any,
        frozen: Any,
        rows: Any = None,
        *,
        active: Sequence[bool],
        at_once: int | None = None,
    ) -> list[dict[str, float]]:
        task, rows = self._task, self._task.evaluation if rows is None else rows
        given = task.inputs(rows), self._batch_size, task.buckets, task.padding
        found = self._program.measure_many(trainables, frozen, *given, at_once)
        pairs = zip(found, active, strict=True)
        return [task.figures(each, rows) if is_active else {} for each, is_active in pairs]


_CONSTANT = ("scale", "bias")  # new leaves that every seed makes alike


def write_record(task: str, record: Any) -> dict[str, Any]:
    """What `save_adapter` is given as `task`: a record's fields, and what they are of."""
    return {"task": task, **asdict(record)}
