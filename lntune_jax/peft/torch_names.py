"""What transformers calls the leaves of a tree that already has its module paths.

Only the last segment differs then (`scale` is `weight`), and the layout of matrices: a JAX
`kernel` ends with its output axis, PyTorch's `weight` begins with it.
"""

from __future__ import annotations

import re

from ..errors import TreeError
from ..names.maps import Place

# Leaf names that PyTorch calls otherwise: of norms, and of what else a saved module may hold. There
# a `scale` or `gamma` is a parameter's own name (LayerScale).
NORM_LEAVES = {"scale": "weight", "gamma": "weight", "w": "weight", "kernel": "weight"} | {
    "beta": "bias",
    "offset": "bias",
    "b": "bias",
}
SAVED_LEAVES = {"kernel": "weight", "embedding": "weight", "embeddings": "weight"}

# A kernel's axes in PyTorch's order: dense, and convolutions of one, two and three dimensions.
_KERNEL_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1), 5: (4, 3, 0, 1, 2)}
_TRANSPOSED = re.compile(r"transpose|deconv|upsampl")  # convolutions of another layout
# Modules of transformers' Conv1D class (GPT-2's), whose weight has the input axis first.
_INPUT_FIRST = frozenset({"c_attn", "c_fc", "c_proj", "q_attn"})


def find_place(leaf: str, shape: tuple[int, ...], *, is_norm: bool) -> Place:
    """The parameter that a leaf is, in a tree with the module paths of transformers.

    Args:
        leaf: the leaf path.
        shape: its shape.
        is_norm: whether its module is a norm.

    Raises:
        TreeError: the layout that PyTorch has for this leaf cannot be known.

    Example:
        >>> place = find_place("classifier.kernel", (32, 2), is_norm=False)
        >>> place.parameter, place.axes
        ('classifier.weight', (1, 0))
    """
    module, _, name = leaf.rpartition(".")
    prefix = f"{module}." if module else ""
    if is_norm:
        return Place(leaf, prefix + NORM_LEAVES.get(name, name))
    axes = None
    if name == "kernel":
        axes = _KERNEL_AXES.get(len(shape))
        if axes is None or _is_unclear(module, shape):
            raise TreeError(_explain(leaf, shape))
    if name == "w" and len(shape) > 1:  # some libraries write the input axis first, some last
        raise TreeError(_explain(leaf, shape))
    return Place(leaf, prefix + SAVED_LEAVES.get(name, name), axes=axes)


def _is_unclear(module: str, shape: tuple[int, ...]) -> bool:
    if module.rpartition(".")[2] in _INPUT_FIRST or _TRANSPOSED.search(module.lower()):
        return True
    # The shape tells a convolution from a transposed one, unless it has as many inputs as outputs.
    return len(shape) > 3 and shape[-1] == shape[-2]


def _explain(leaf: str, shape: tuple[int, ...]) -> str:
    return (
        f"the layout of {leaf!r} (shape {shape}) in PyTorch cannot be known from its name: pass a "
        "name_map with a rule for it, whose axes say how it is transposed"
    )
