"""What a compiled program computes and holds: matmul FLOPs, and the compiler's bytes."""

import math
import re

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_RESULT = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = \(?\w+\[([\d,]*)\]")
_DOT = re.compile(r" dot\(%?([\w.-]+),.*?lhs_contracting_dims=\{([\d,]*)\}")
LOOP = re.compile(r" while\(.*body=%?([\w.-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


def count_flops(text: str) -> int:
    """Floating-point operations of all matmuls of a program, a loop's as often as it turns.

    `cost_analysis()` counts the body of a loop once, whatever its length. Of a `cond` the branch
    with the most is counted.

    Args:
        text: `compiled.as_text()`.

    Raises:
        ValueError: a loop whose length the compiler does not know.
    """
    bodies, entry = split_program(text)
    counted: dict[str, int] = {}

    def visit(name: str) -> int:
        if name in counted:
            return counted[name]
        shapes, flops = {}, 0
        for line in bodies.get(name, ()):
            result = _RESULT.match(line)
            if result is None:
                continue
            shapes[result[1]] = read_numbers(result[2])
            dot = _DOT.search(line)
            if dot:
                inner = math.prod(shapes[dot[1]][axis] for axis in read_numbers(dot[2]))
                flops += 2 * inner * math.prod(shapes[result[1]])
            loop = LOOP.search(line)
            if loop:
                trips = TRIPS.search(line)
                inside = visit(loop[1])
                if inside and trips is None:
                    raise ValueError(f"a loop of unknown length: {line.strip()[:200]}")
                flops += inside * int(trips[1] if trips else 0)
            branches = _BRANCHES.search(line)
            if branches:
                flops += max(visit(each.strip(" %")) for each in branches[1].split(","))
            flops += sum(visit(called) for called in CALLED.findall(line))
        counted[name] = flops
        return flops

    return visit(entry)


def count_bytes(compiled) -> dict[str, int]:
    """Bytes of arguments, temporaries and outputs; in the peak, what is given back counts once."""
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


def split_program(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by its name, and the name of the one that is entered."""
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
    return bodies, entry


def read_numbers(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between."""
    return tuple(int(word) for word in text.split(",") if word)
