"""What a compiled program computes, holds and leaves in memory, read from its text.

XLA's own count of operations takes the body of a loop once, whatever its length; here a loop
counts as often as it turns. A TPU's compiler writes matrix products as convolutions, and leaves out
how often a loop turns: both are read as XLA itself reads them.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_RESULT = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = \(?\w+\[([\d,]*)\]")
_DOT = re.compile(r" dot\(%?([\w.-]+),.*?lhs_contracting_dims=\{([\d,]*)\}")
_CONVOLUTION = re.compile(
    r" convolution\(%?([\w.-]+), %?([\w.-]+)\),(?: window=\{(.*?)\},)?"
    r" dim_labels=(\w+)_(\w+)->(\w+)"
)
_GROUPED = re.compile(r"(feature|batch)_group_count=(\d+)")
_LOOP = re.compile(r" while\(%?([\w.-]+)\)")
_BODY = re.compile(r"body=%?([\w.-]+)")
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(
    r"(?:calls|to_apply|true_computation|false_computation|called_computations)=\{?%?([\w.-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*? ([a-z][\w-]*)\((.*?)\)")
_INDEX = re.compile(r" index=(\d+)")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
# What passes a number on as it is.
_SAME = ("copy", "copy-start", "copy-done", "bitcast", "convert")


class Program(NamedTuple):
    """The text of a program, by its computations.

    Attributes:
        bodies: the lines of each computation by its name.
        entry: the name of the one that is entered.
    """

    bodies: dict[str, list[str]]
    entry: str


class Step(NamedTuple):
    """A line of a program that runs, and how.

    Attributes:
        line: of the text.
        computation: the name of the computation that it stands in.
        turns: how often it runs: the turns of the loops around it; `None` where one of them does
            not tell.
        fused: whether it is part of a fusion, whose values are never in memory.
    """

    line: str
    computation: str
    turns: int | None
    fused: bool


def count_flops(text: str) -> int:
    """Count the floating-point operations of all matrix products, a loop's as often as it turns.

    `cost_analysis()` counts the body of a loop once, whatever its length. Of a `cond` the branch
    with the most is counted.

    Args:
        text: `compiled.as_text()`.

    Raises:
        ValueError: a loop with products in it whose length cannot be told.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> square = jax.ShapeDtypeStruct((64, 64), "float32")
        >>> compiled = jax.jit(jnp.matmul).lower(square, square).compile()
        >>> count_flops(compiled.as_text()) == 2 * 64**3
        True
    """
    program = read_program(text)
    counted: dict[str, int] = {}

    def visit(name: str) -> int:
        if name in counted:
            return counted[name]
        shapes, flops = {}, 0
        lines = program.bodies.get(name, [])
        for line in lines:
            result = _RESULT.match(line)
            if result is None:
                continue
            shapes[result[1]] = read_numbers(result[2])
            flops += _count_product(line, shapes, shapes[result[1]])
            if _LOOP.search(line):
                inside, turns = visit(_find(_BODY, line)), count_turns(program, name, line)
                if inside and turns is None:
                    raise ValueError(f"a loop of unknown length: {line.strip()[:200]}")
                flops += inside * (turns or 0)
            branches = _BRANCHES.search(line)
            if branches:
                flops += max(visit(each.strip(" %")) for each in branches[1].split(","))
            flops += sum(visit(called) for called in _CALLED.findall(line))
        counted[name] = flops
        return flops

    return visit(program.entry)


def walk(text: str) -> list[Step]:
    """List the lines of a program that run, those of loops, branches and calls included.

    Args:
        text: `compiled.as_text()`.

    Example:
        >>> import jax
        >>> compiled = jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((4,), "float32"))
        >>> {step.turns for step in walk(compiled.compile().as_text())}
        {1}
    """
    program = read_program(text)
    found: list[Step] = []

    def visit(name: str, turns: int | None, fused: bool) -> None:
        for line in program.bodies.get(name, ()):
            found.append(Step(line, name, turns, fused))
            if _LOOP.search(line):
                own = count_turns(program, name, line)
                inside = None if turns is None or own is None else turns * own
                visit(_find(_BODY, line), inside, fused)
                continue
            branches = _BRANCHES.search(line)
            for each in branches[1].split(",") if branches else ():
                visit(each.strip(" %"), turns, fused)
            for called in _CALLED.findall(line):
                visit(called, turns, fused or " fusion(" in line)

    visit(program.entry, 1, False)
    return found


def count_bytes(compiled: Any) -> dict[str, int]:
    """Give the bytes of arguments, temporaries and outputs of a compiled program on a device.

    In the peak, outputs that take the place of arguments count once.

    Example:
        >>> import jax
        >>> compiled = jax.jit(abs).lower(jax.ShapeDtypeStruct((4,), "float32")).compile()
        >>> count_bytes(compiled)["argument_bytes"]
        16
    """
    found = compiled.memory_analysis()
    return {
        "argument_bytes": found.argument_size_in_bytes,
        "temporary_bytes": found.temp_size_in_bytes,
        "output_bytes": found.output_size_in_bytes,
        "peak_bytes": found.argument_size_in_bytes
        + found.temp_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes,
    }


def find_square(text: str, length: int) -> tuple[str, int] | None:
    """Find the largest array in memory of which two axes are of the length: attention's scores.

    Args:
        text: `compiled.as_text()`.
        length: of a row in tokens; to be told from the model's own sizes, it must be none of them.

    Returns:
        The array's type and shape as XLA writes them, and its bytes; `None` where there is none.

    Example:
        >>> import jax
        >>> scores = jax.jit(lambda x: (x @ x.T) @ x)
        >>> compiled = scores.lower(jax.ShapeDtypeStruct((64, 4), "float32")).compile()
        >>> find_square(compiled.as_text(), 64)
        ('f32[64,64]', 16384)
    """
    largest: tuple[str, int] | None = None
    for step in walk(text):
        head = step.line.split("metadata=")[0]
        if step.fused or " = " not in head:
            continue
        for kind, sizes in _SHAPE.findall(head.split(" = ")[1].split("(")[0]):
            shape = read_numbers(sizes)
            size = math.prod(shape) * count_bits(kind) // 8
            if shape.count(length) > 1 and (largest is None or size > largest[1]):
                largest = f"{kind}[{sizes}]", size
    return largest


def count_turns(program: Program, name: str, line: str) -> int | None:
    """Give how often a loop turns: what the compiler says, or what its counter is compared with.

    Args:
        program: that it is part of.
        name: of the computation that it stands in.
        line: the loop's.

    Returns:
        `None` where it cannot be told.
    """
    said = _TRIPS.search(line)
    if said:
        return int(said[1])
    found = _read_counter(program, name, line)
    if found is None:
        return None
    start, end, stride = found
    return max(0, -((start - end) // stride))


def read_program(text: str) -> Program:
    """Read the lines of each computation by its name, and the name of the one that is entered."""
    bodies: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        opened = _COMPUTATION.match(line)
        if opened:
            current = opened[1]
            bodies[current] = []
            entry = current if line.startswith("ENTRY") else entry
        elif current:
            bodies[current].append(line)
    return Program(bodies, entry)


def read_numbers(text: str) -> tuple[int, ...]:
    """Read whole numbers with commas between."""
    return tuple(int(word) for word in text.split(",") if word)


def count_bits(kind: str) -> int:
    """Give the bits of an entry of a type, as XLA writes it: `pred`, `bf16`, `f8e4m3fn`."""
    if kind == "pred":
        return 8
    found = re.match(r"[a-z]+(\d+)", kind)
    assert found is not None, kind
    return int(found[1])


def _find(pattern: re.Pattern[str], line: str) -> str:
    found = pattern.search(line)
    assert found is not None, line
    return found[1]


def _count_product(line: str, shapes: dict[str, tuple[int, ...]], result: tuple[int, ...]) -> int:
    """The operations of a matrix product, or of a convolution that is one; 0 of another line."""
    dot = _DOT.search(line)
    if dot:
        inner = math.prod(shapes[dot[1]][axis] for axis in read_numbers(dot[2]))
        return 2 * inner * math.prod(result)
    found = _CONVOLUTION.search(line)
    if not found:
        return 0
    left, right = shapes[found[1]], shapes[found[2]]
    inputs, kernel, outputs = found[4], found[5], found[6]
    groups = {kind: int(count) for kind, count in _GROUPED.findall(line)}
    count = left[inputs.index("f")] * right[kernel.index("o")] * left[inputs.index("b")]
    count //= groups.get("feature", 1) * groups.get("batch", 1)
    window = _read_window(found[3] or "")
    for axis in range(len(inputs) - 2):
        place = str(axis)
        count *= _count_places(
            left[inputs.index(place)], result[outputs.index(place)], axis, window
        )
    return 2 * count


def _read_window(text: str) -> dict[str, list[str]]:
    return {name: sizes.split("x") for name, sizes in re.findall(r"(\w+)=(\S+)", text)}


def _count_places(entries: int, outputs: int, axis: int, window: dict[str, list[str]]) -> int:
    """How many pairs of an output and an entry of the window meet an entry of the input.

    Batches of a product are such an axis on a TPU, padded so that each meets one alone.
    """

    def read(name: str, default: str) -> str:
        return window[name][axis] if name in window else default

    size, stride = int(read("size", "1")), int(read("stride", "1"))
    low = int(read("pad", "0_0").split("_")[0])
    spread, gaps = int(read("lhs_dilate", "1")), int(read("rhs_dilate", "1"))
    places = (
        output * stride - low + entry * gaps for output in range(outputs) for entry in range(size)
    )
    return sum(place % spread == 0 and 0 <= place // spread < entries for place in places)


class _Instruction(NamedTuple):
    kind: str
    operands: list[str]
    line: str


def _read_instructions(lines: list[str]) -> dict[str, _Instruction]:
    found = {}
    for line in lines:
        match = _INSTRUCTION.match(line.split("metadata=")[0])
        if match:
            words = [word.split()[-1].split("*/")[-1] for word in match[3].split(",") if word]
            found[match[1]] = _Instruction(match[2], [word.lstrip("%") for word in words], line)
    return found


def _read_counter(program: Program, name: str, line: str) -> tuple[int, int, int] | None:
    """Where a loop's counter starts, where it ends, and by how much it grows."""
    around = _read_instructions(program.bodies[name])
    test = _read_instructions(program.bodies.get(_find(_CONDITION, line), []))
    body = _read_instructions(program.bodies.get(_find(_BODY, line), []))
    given = around.get(_find(_LOOP, line))
    compared = next((each for each in test.values() if "ROOT" in each.line), None)
    grown = next((each for each in body.values() if "ROOT" in each.line), None)
    if given is None or compared is None or grown is None or grown.kind != "tuple":
        return None
    if compared.kind != "compare" or "direction=LT" not in compared.line:
        return None
    starts = given.operands if given.kind == "tuple" else []

    def number(value: str, own: dict[str, _Instruction]) -> int | None:
        """A constant, or what the loop was given."""
        found = _follow(own, value)
        if found is None:
            return None
        if found.kind == "constant":
            return int(found.operands[0]) if found.operands[0].lstrip("-").isdecimal() else None
        place = _place(found)
        if own is around or place is None or place >= len(starts):
            return None
        return number(starts[place], around)

    counter = _place(_follow(test, compared.operands[0]))
    end = number(compared.operands[1], test)
    if counter is None or counter >= min(len(starts), len(grown.operands)) or end is None:
        return None
    start, added = number(starts[counter], around), _follow(body, grown.operands[counter])
    if start is None or added is None or added.kind != "add":
        return None
    parts = [value for value in added.operands if _place(_follow(body, value)) != counter]
    strides = [number(value, body) for value in parts]
    if len(strides) != 1 or not strides[0] or strides[0] < 1:
        return None
    return start, end, strides[0]


def _follow(own: dict[str, _Instruction], value: str) -> _Instruction | None:
    """The instruction that a value comes from, through copies of it."""
    while value in own and own[value].kind in _SAME:
        value = own[value].operands[0]
    return own.get(value)


def _place(found: _Instruction | None) -> int | None:
    """Which part of a loop's values an instruction takes."""
    if found is None or found.kind != "get-tuple-element":
        return None
    index = _INDEX.search(found.line)
    return int(index[1]) if index else None
