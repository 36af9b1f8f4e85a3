"""A plan, and how it is said: a table of what each device holds, computes and sends."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .chips import Slice
    from .compiled import Compiled, Sent

_SENT = {
    "all-gather": "all-gather",
    "reduce-scatter": "reduce-scatter",
    "all-reduce": "all-reduce",
    "all-to-all": "all-to-all",
    "collective-permute": "permute",
}
_WIDTH = 26


@dataclass(frozen=True)
class Attempt:
    """A step that was compiled: how much is computed again, of how many tokens, and the result."""

    remat: str
    batch: int
    length: int
    compiled: Compiled


@dataclass(frozen=True)
class Plan:
    """What the compiler says of a step on each device of a slice; printing it gives a report.

    Attributes:
        model_type: the family.
        task: what the model is made for.
        parameters: of the whole model.
        trainable: how many of them train in LN tuning.
        products: entries that each token is multiplied with: the N of a forward pass's 2N.
        chips: the slice.
        mesh: sizes of the axes.
        batch: rows of all devices together.
        length: tokens in a row.
        rank: of LoRA's factors.
        options: how the model is made, by the names of `Options`.
        steps: what the compiler says, by method: "ln", "lora", "full".
        estimates: what `estimate_memory` says of the same, in bytes; `None` where it says nothing.
        tried: where the first of the steps does not fit, what was compiled beside it.

    Example:
        >>> from lntune_jax.models import Plan
        >>> [each.name for each in dataclasses.fields(Plan)][:3]
        ['model_type', 'task', 'parameters']
    """

    model_type: str
    task: str | None
    parameters: int
    trainable: int
    products: int
    chips: Slice
    mesh: dict[str, int]
    batch: int
    length: int
    rank: int
    options: dict[str, Any]
    steps: dict[str, Compiled]
    estimates: dict[str, int | None]
    tried: tuple[Attempt, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the step fits as it was asked for: the first of the methods."""
        return next(iter(self.steps.values())).fits

    @property
    def fitting(self) -> Attempt | None:
        """What fits: the step itself, or the first that does of those tried; or `None`."""
        asked = Attempt(
            self.options.get("remat", "none"),
            self.batch,
            self.length,
            next(iter(self.steps.values())),
        )
        return next((each for each in (asked, *self.tried) if each.compiled.fits), None)

    def passes(self, compiled: Compiled, tokens: int | None = None) -> float | None:
        """Give the operations of all devices, in forward passes of 2N for each token.

        Args:
            compiled: one of the steps.
            tokens: of its batch; those of the plan unless given.
        """
        if compiled.flops is None:
            return None
        pass_ = 2 * self.products * (tokens or self.batch * self.length)
        return compiled.flops * self.chips.devices / pass_

    def to_dict(self) -> dict[str, Any]:
        """Give all of it as JSON values."""
        found = dataclasses.asdict(self)
        found["chips"] = {
            "name": str(self.chips),
            "layout": self.chips.layout,
            "devices": self.chips.devices,
            "memory": self.chips.chip.memory,
            "flops": self.chips.chip.flops,
        }
        for method, step in self.steps.items():
            more = {"fits": step.fits, "passes": self.passes(step)}
            found["steps"][method] = found["steps"][method] | more
        return found

    def __str__(self) -> str:
        return write_report(self)


def write_report(plan: Plan) -> str:
    """Give the lines of a plan."""
    mesh = ",".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    lines = [
        f"{plan.model_type}: {plan.parameters:,} parameters, {plan.trainable:,} train in LN tuning",
        f"{plan.chips.describe()}, mesh {mesh}",
        _describe_step(plan, plan.options.get("remat", "none"), plan.batch, plan.length),
        "",
        *write_table(plan, plan.steps, plan.batch * plan.length, plan.estimates),
    ]
    if not plan.fits:
        lines += ["", *_write_search(plan)]
    return "\n".join(lines)


def write_table(
    plan: Plan, steps: dict[str, Compiled], tokens: int, estimates: dict[str, int | None]
) -> list[str]:
    """Give a table of steps: a column for each, by its method."""
    names = {"ln": "LN tuning", "lora": f"LoRA, rank {plan.rank}", "full": "full fine-tuning"}
    columns = list(steps.values())

    def row(name: str, cells: list[str | None]) -> list[str]:
        if not any(cells):
            return []
        return [name.ljust(_WIDTH) + "".join(f"{cell or '-':>20}" for cell in cells)]

    lines = row("on each device", [names[method] for method in steps])
    lines += row("arguments", [_gigabytes(each.arguments) for each in columns])
    lines += row("temporaries", [_gigabytes(each.temporaries) for each in columns])
    lines += row("at the peak", [_gigabytes(each.needed) for each in columns])
    lines += row("memory", [_gigabytes(each.memory) for each in columns])
    lines += row("", ["fits" if each.fits else "does not fit" for each in columns])
    lines += row("estimate_memory", [_gigabytes(estimates.get(method)) for method in steps])
    passes = [plan.passes(each, tokens) for each in columns]
    flops = [each.flops for each in columns]
    peak = plan.chips.chip.flops
    lines += row("operations", [_write("{:,.2f} TFLOP", each, 1e12) for each in flops])
    lines += row("  in forward passes (2N)", [_write("{:.2f}", each) for each in passes])
    lines += row("  at the chip's peak", [None if not n else _seconds(n / peak) for n in flops])
    sums = [None if each.sent is None else each.sent.values() for each in columns]
    sizes = [None if each is None else sum(one.sent for one in each) for each in sums]
    lines += row("sent to other devices", [_gigabytes(n) if n != 0 else "nothing" for n in sizes])
    for kind, name in _SENT.items():
        lines += row(f"  {name}", [_sent(each.sent or {}, kind) for each in columns])
    lines += row("length x length", [_name_square(each) for each in columns])
    squares = [each.square for each in columns]
    lines += row("", [None if each is None else _gigabytes(each[1]) for each in squares])
    for method, each in steps.items():
        lines += [f"{names[method]}: {note}" for note in each.notes]
    return lines


def _write_search(plan: Plan) -> list[str]:
    method, first = next(iter(plan.steps.items()))
    over = f"{first.needed / 1e9:.2f} GB where a device has {first.memory / 1e9:.2f}"
    lines = [f"It does not fit: it needs {over}."]
    fitting = plan.fitting
    if fitting is not None:
        lines += [f"This fits: {describe_change(plan, fitting)}", ""]
        tokens = fitting.batch * fitting.length
        return lines + write_table(plan, {method: fitting.compiled}, tokens, {})
    tried = "; ".join(describe_change(plan, each) for each in plan.tried)
    if tried:
        lines.append(f"Nor does what was tried: {tried}.")
    return [*lines, "Spread the weights over more chips, or divide layers too (tensor)."]


def describe_change(plan: Plan, attempt: Attempt) -> str:
    """Say what an attempt has that differs from what was asked for, as flags."""
    flags = []
    if attempt.remat != plan.options.get("remat", "none"):
        flags.append(f"--remat {attempt.remat}")
    if attempt.batch != plan.batch:
        flags.append(f"--batch-size {attempt.batch}")
    if attempt.length != plan.length:
        flags.append(f"--max-length {attempt.length}")
    return " ".join(flags)


def _describe_step(plan: Plan, remat: str, batch: int, length: int) -> str:
    options = plan.options
    words = [f"{batch} x {length:,} tokens in all", options["dtype"]]
    if options.get("scan_layers"):
        words += [f"remat {remat}", "layers in one loop"]
    words.append(f"attention {options['attention']}")
    if options.get("quantize"):
        words.append(f"kernels in {options['quantize']}")
    return ", ".join(words)


def _gigabytes(size: int | None) -> str | None:
    if size is None:
        return None
    return f"{size / 1e9:,.2f} GB" if size >= 1e7 else f"{size / 1e6:,.2f} MB"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1e3 * seconds:.2f} ms"


def _write(form: str, number: float | None, unit: float = 1) -> str | None:
    return None if number is None else form.format(number / unit)


def _sent(sent: dict[str, Sent], kind: str) -> str | None:
    return f"{sent[kind].count:,} x, {_gigabytes(sent[kind].sent)}" if kind in sent else None


def _name_square(compiled: Compiled) -> str | None:
    """The type and shape of the largest scores; "none" where the program was looked through."""
    if compiled.square is not None:
        return compiled.square[0]
    return "none" if compiled.has_no_square else None
