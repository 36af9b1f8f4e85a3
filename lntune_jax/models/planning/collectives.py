"""What a compiled program sends between devices, read from its text."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from .program import Step, count_bits, read_numbers, walk

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_SHAPE = re.compile(r"\b(pred|bf16|f8e4m3fn|[fsuc]\d+)\[([\d,]*)\]")
_LINE = re.compile(rf"= (.*?) (?:ragged-)?({'|'.join(KINDS)})(-start)?\(")
_NAME = re.compile(r'op_name="([^"]*)"')
# Three spellings: [groups,size]<=..., {{0,1},{2,3}}, and mesh['a'=4,'b'=2] {'a'}.
_GROUPS = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]*)\}|mesh\[(.*?)\] \{(.*?)\})")
_AXIS = re.compile(r"'(\w+)'=(\d+)")
_PART = re.compile(r"'(\w+)'(?::\(\d+\)(\d+))?")
_CHANNEL = re.compile(r"channel_id=(\d+)")


class Collective(NamedTuple):
    """One operation between devices.

    Attributes:
        kind: one of `KINDS`.
        shapes: what comes out of it, on a device.
        bytes: of that, all its turns together.
        turns: how often it runs: the turns of the loops around it.
        group: how many devices take part.
        source: the operation of the program that it comes from.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    bytes: int
    turns: int
    group: int
    source: str

    @property
    def sent(self) -> int:
        """Bytes that a device sends in a ring of its group: the algorithm of large messages."""
        share = (self.group - 1) / max(self.group, 1)
        if self.kind == "reduce-scatter":
            return round(self.bytes * (self.group - 1))
        if self.kind == "collective-permute":
            return self.bytes
        return round(self.bytes * share * (2 if self.kind == "all-reduce" else 1))


def list_collectives(text: str, devices: int) -> list[Collective]:
    r"""List the collectives of a compiled program.

    Args:
        text: `compiled.as_text()`.
        devices: how many the program is for.

    Raises:
        ValueError: one is in a loop whose length cannot be told.

    Example:
        >>> line = "  %sum = f32[8] all-reduce(%x), replica_groups={{0,1}}, to_apply=%add"
        >>> (found,) = list_collectives(f"ENTRY %main () -> f32[8] {{\n{line}\n}}", 2)
        >>> found.kind, found.bytes, found.sent
        ('all-reduce', 32, 32)
    """
    found: list[Collective] = []
    seen: set[str] = set()
    for step in walk(text):
        match = _LINE.search(step.line)
        if not match:
            continue
        # A TPU's compiler spreads one that runs beside others over several fusions, each of which
        # shows it: they share a channel.
        channel = _CHANNEL.search(step.line)
        if step.fused and channel:
            if channel[1] in seen:
                continue
            seen.add(channel[1])
        if step.turns is None:
            raise ValueError(f"in a loop of unknown length: {step.line.strip()[:200]}")
        found.append(_read(step, step.turns, match, devices))
    return found


def total(found: list[Collective], kind: str | None = None) -> int:
    """Give the bytes of all results, of one kind or of all.

    Example:
        >>> total([])
        0
    """
    return sum(each.bytes for each in found if kind in (None, each.kind))


def _read(step: Step, turns: int, match: re.Match[str], devices: int) -> Collective:
    kind = match[2]
    shapes = [(kind, read_numbers(sizes)) for kind, sizes in _SHAPE.findall(match[1])]
    if match[3] and kind in ("all-gather", "collective-permute"):
        # An asynchronous one's result holds its operands first, and numbers of its own last.
        shapes = [each for each in shapes if each != ("u32", ())] or shapes
        shapes = shapes[len(shapes) // 2 :]
    size = sum(count_bits(kind) * math.prod(shape) // 8 for kind, shape in shapes)
    group = _group(step.line) or devices
    if step.computation.startswith("all-reduce-scatter"):  # what a TPU's compiler makes of one
        kind, size = "reduce-scatter", size // group
    name = _NAME.search(step.line)
    shown = tuple(shape for _, shape in shapes)
    source = name[1] if name else ""
    return Collective(kind, shown, size * turns, turns, group, source)


def _group(line: str) -> int | None:
    """How many devices take part; `None` for all of them."""
    found = _GROUPS.search(line)
    if found is None:
        return None
    if found[1]:
        return int(found[1])
    if found[3] is None:
        return len(read_numbers(found[2])) or None
    sizes = dict(_AXIS.findall(found[3]))
    return math.prod(int(part or sizes[name]) for name, part in _PART.findall(found[4]))
