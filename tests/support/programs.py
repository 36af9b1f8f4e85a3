"""The matmuls of a program, read from its text."""

import re

import jax


def list_dots(function, *arguments, stage="compiled"):
    """Each matmul of a jitted function, sorted: shapes of its result, or of its operands too.

    Args:
        function: what is compiled.
        *arguments: what it is compiled for.
        stage: "compiled", what XLA runs, or "lowered", what JAX asks for.
    """
    lowered = jax.jit(function).lower(*arguments)
    if stage == "lowered":
        return sorted(re.findall(r"dot_general .*: (\(tensor.*)", lowered.as_text()))
    text = lowered.compile().as_text()
    return sorted(re.findall(r"= (\w+\[[\d,]*\])\S* (?:dot|custom-call)\(", text))
