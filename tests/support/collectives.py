"""What a compiled program sends between devices, read from its HLO."""

import math
import re
from typing import NamedTuple

import jax

from lntune_jax.models import from_config
from tests.support.flops import CALLED, LOOP, TRIPS, read_numbers, split_program
from tests.support.mesh_steps import compile_step

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "bf16": 16, "f8e4m3fn": 8}
_SHAPE = re.compile(r"\b(pred|bf16|f8e4m3fn|[fsuc]\d+)\[([\d,]*)\]")
_LINE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_NAME = re.compile(r'op_name="([^"]*)"')
# Three spellings: [groups,size]<=..., {{0,1},{2,3}}, and mesh['a'=4,'b'=2] {'a'}.
_GROUPS = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]*)\}|mesh\[(.*?)\] \{(.*?)\})")
_AXIS = re.compile(r"'(\w+)'=(\d+)")
_PART = re.compile(r"'(\w+)'(?::\(\d+\)(\d+))?")


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
    """The collectives of a compiled program: `compiled.as_text()`."""
    bodies, entry = split_program(text)
    found: list[Collective] = []

    def visit(name: str, turns: int) -> None:
        for line in bodies.get(name, ()):
            loop = LOOP.search(line)
            if loop:
                trips = TRIPS.search(line)
                if trips is None:
                    raise ValueError(f"a loop of unknown length: {line.strip()[:200]}")
                visit(loop[1], turns * int(trips[1]))
                continue
            match = _LINE.search(line)
            if match:
                found.append(_read(line, match, turns, devices))
            for called in CALLED.findall(line):
                if not match:
                    visit(called, turns)

    visit(entry, 1)
    return found


def total(found: list[Collective], kind: str | None = None) -> int:
    """The bytes of all results, of one kind or of all."""
    return sum(each.bytes for each in found if kind in (None, each.kind))


def _read(line: str, match: re.Match[str], turns: int, devices: int) -> Collective:
    shapes = [(kind, read_numbers(sizes)) for kind, sizes in _SHAPE.findall(match[1])]
    if match[3]:  # An asynchronous one's result holds its operands first.
        shapes = shapes[len(shapes) // 2 :]
    size = sum(_bits(kind) * math.prod(shape) // 8 for kind, shape in shapes)
    group = _group(line) or devices
    name = _NAME.search(line)
    shown = tuple(shape for _, shape in shapes)
    return Collective(match[2], shown, size * turns, turns, group, name[1] if name else "")


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


def _bits(kind: str) -> int:
    return _BITS.get(kind) or int(kind[1:])


LLAMA = {
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
ROWS, LENGTH = 16, 64


def make_mesh(sizes):
    """A mesh of simulated devices, its axes left to the compiler."""
    kinds = (jax.sharding.AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds)


def measure(sizes, method, **options):
    """The collectives of a step; `options` are those of `from_config`."""
    model = from_config(LLAMA, "CAUSAL_LM", dtype="float32", **options)
    tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), "int32")
    text = compile_step(model, method, tokens, make_mesh(sizes)).as_text()
    return list_collectives(text, jax.device_count())
