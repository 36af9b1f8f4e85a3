"""What quantisation leaves in a tree of parameters: values of few bits, and their scales beside.

By the names that qwix gives them (`kernel.array.qvalue`, `kernel.array.scale`); no package of the
kind is needed to tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..compat import list_activation_types
from ..errors import ModelError
from ..paths import Path

QVALUE = "qvalue"
_PARTS = ("scale", "zero_point")
# What the kinds are called whose dtype has another name.
_NAMES = {"uint4": "nf4", "float8_e4m3fn": "fp8"}


def find_scales(paths: Iterable[Path]) -> frozenset[Path]:
    """Where the scales of quantised values lie, if there: they are no parameters of the model.

    Example:
        >>> sorted(find_scales([("fc", "qvalue"), ("fc", "scale"), ("ln", "scale")]))
        [('fc', 'scale'), ('fc', 'zero_point')]
    """
    quantized = {path[:-1] for path in paths if path[-1:] == (QVALUE,)}
    return frozenset((*module, part) for module in quantized for part in _PARTS)


def find_quantized(paths: Iterable[Path]) -> frozenset[Path]:
    """Where quantised values and their scales lie.

    Example:
        >>> sorted(find_quantized([("fc", "qvalue"), ("fc", "scale"), ("ln", "scale")]))
        [('fc', 'qvalue'), ('fc', 'scale'), ('fc', 'zero_point')]
    """
    paths = list(paths)
    return find_scales(paths) | {path for path in paths if path[-1:] == (QVALUE,)}


def describe_quantization(leaves: Mapping[str, Any]) -> str | None:
    """The kinds of quantised values among `{leaf path: array}`, or None where there are none.

    Example:
        >>> import numpy as np
        >>> describe_quantization({"fc.kernel.array.qvalue": np.ones((2, 2), np.int8)})
        'int8'
    """
    dtypes = {str(leaf.dtype) for path, leaf in leaves.items() if path.rpartition(".")[2] == QVALUE}
    return ", ".join(sorted(_NAMES.get(name, name) for name in dtypes)) or None


def refuse_activations(model: Any) -> None:
    """Refuses a Flax module to which qwix's `PtqProvider` gave rules with an `act_qtype`.

    Raises:
        ModelError: it quantises activations, through which norms get wrong gradients.
    """
    if kinds := list_activation_types(model):
        raise ModelError(
            f"the {type(model).__name__} is quantised by qwix with act_qtype {', '.join(kinds)}: "
            "rounded activations have no gradient, so that norms would get wrong gradients: zero, "
            "or (where the range is taken from the data) that of the largest values alone. Give "
            "PtqProvider rules with weight_qtype alone, or train with QtProvider"
        )
