"""`forward` as a graph of `torch.export`: made once for each kind of arguments, then kept.

Export runs the module's Python code on tensors without values. What needs values, or what the
graph would not show, is refused here.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ...errors import LNTuningError, ModelError
from .imports import load_torch, load_torchax
from .module import Skeleton, fill, to_numpy
from .output import TorchOutput
from .workarounds import guard_tracing, make_fake_mode

_CACHES = ("past_key_values", "cache_params")
_PLACES = (f"{os.sep}torch{os.sep}", f"integrations{os.sep}torchax", f"{os.sep}contextlib.py")


class Program(NamedTuple):
    """A graph, and what is needed to run it.

    Attributes:
        graph: of PyTorch's operators, as export gives it; writes and views are in it.
        constants: for each input of the graph an array, or None where it is a tensor given.
        structure: of the result.
        values: for each leaf of the result a plain Python value, or None where it is a tensor.
    """

    graph: Any
    constants: list[np.ndarray | None]
    structure: Any
    values: list[Any]


class Slot(NamedTuple):
    """The place of an array among the arguments."""

    shape: tuple[int, ...]
    dtype: str


def export(skeleton: Skeleton, given: Sequence[Any], structure: Any, train: bool) -> Program:
    """Runs `forward` on tensors without values, and keeps the operators that it calls.

    Args:
        skeleton: the module.
        given: the leaves of `(args, kwargs)`, with a `Slot` in the place of each array.
        structure: of `(args, kwargs)`.
        train: training mode or not.

    Raises:
        ModelError: `forward` needs values, uses what a graph does not show, or raises an error.
    """
    torch = load_torch()

    def is_slot(value: Any) -> bool:
        return isinstance(value, Slot)

    tensors = {**skeleton.params, **skeleton.buffers}
    result: list[Any] = []

    class Call(torch.nn.Module):
        def forward(self, weights: list[Any], arrays: list[Any]) -> list[Any]:
            module = fill(skeleton, dict(zip(tensors, weights, strict=True)))
            module.train(train)
            own = iter(arrays)
            args, kwargs = structure.unflatten(next(own) if is_slot(x) else x for x in given)
            with guard_tracing(module):
                output = to_tree(module(*args, **kwargs), "the result")
            leaves, tree = jax.tree.flatten(output)
            is_tensor = [isinstance(leaf, torch.Tensor) for leaf in leaves]
            values = [None if t else leaf for t, leaf in zip(is_tensor, leaves, strict=True)]
            result[:] = [tree, values]
            return [leaf for t, leaf in zip(is_tensor, leaves, strict=True) if t]

    with make_fake_mode():
        weights = [torch.empty(tuple(t.shape), dtype=t.dtype) for t in tensors.values()]
        arrays = [torch.empty(x.shape, dtype=_to_torch_dtype(x.dtype)) for x in given if is_slot(x)]
    level = logging.root.manager.disable
    with load_torchax().disable_temporarily(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)  # a failed export writes the whole graph there
        try:
            program = torch.export.export(Call(), (weights, arrays), strict=False)
        except Exception as error:  # whatever the module's own code raises
            raise _explain(error) from error
        finally:
            logging.disable(level)
    return Program(program.graph_module, _list_constants(program), *result)


def has_64_bits() -> bool:
    """Whether JAX has 64-bit numbers on."""
    return jax.dtypes.canonicalize_dtype("int64") == "int64"


def _to_torch_dtype(name: str) -> Any:
    """The dtype that the module's code expects: PyTorch's int64 is int32 in JAX without 64 bits."""
    wide = {} if has_64_bits() else {"int32": "int64"}
    return getattr(load_torch(), wide.get(name, name))


def _list_constants(program: Any) -> list[np.ndarray | None]:
    constants: list[np.ndarray | None] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            constants.append(None)
            continue
        value = program.constants.get(spec.target)
        if value is None:
            value = program.state_dict.get(spec.target)
        if type(value) not in (load_torch().Tensor, load_torch().nn.Parameter):
            raise ModelError(
                f"forward makes a tensor, {spec.target!r}, in a way that torch.export does not "
                "follow: make it in the module's __init__, or with operators of PyTorch"
            )
        constants.append(to_numpy(value))
    return constants


def _explain(error: Exception) -> ModelError:
    """The error of an export in words of ours: what was asked of a tensor, and where."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for link in chain:
        if isinstance(link, LNTuningError):
            return ModelError(str(link))
    where = _find_place(chain)
    names = " ".join(type(link).__name__ for link in chain)
    if any(word in names for word in ("DataDependent", "DynamicOutputShape", "Unbacked")) or (
        "data-dependent" in str(error).lower()
    ):
        return ModelError(
            f"forward depends on the values of a tensor, in {where}: a compiled program cannot, "
            "and torch.export refuses it too. Leave out the argument or the option that leads "
            "there, or overwrite that method with one that uses torch.where"
        )
    first = (str(error).strip().splitlines() or [""])[0]
    return ModelError(
        f"forward raises {type(error).__name__}: {first} (in {where}). torch.export runs it on "
        "tensors without values, of the shapes and dtypes that you passed: check these, and that "
        "the module runs in PyTorch"
    )


def _find_place(chain: Sequence[BaseException]) -> str:
    """The line of the module's own code, or of transformers', that an error comes from."""
    for link in reversed(chain):
        for frame in reversed(traceback.extract_tb(link.__traceback__)):
            if not any(place in frame.filename for place in _PLACES):
                name = frame.filename.rpartition(os.sep)[2]
                return f"{name}, line {frame.lineno}: `{frame.line}`"
    return "forward"


def to_tree(value: Any, where: str) -> Any:
    """A result as a tree that jit can return, its tensors as they are; caches are left out."""
    torch = load_torch()
    if isinstance(value, torch.Tensor) or value is None or type(value) in (bool, int, float):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return TorchOutput({n: to_tree(v, n) for n, v in fields.items() if n not in _CACHES})
    if isinstance(value, Mapping):
        return {str(name): to_tree(v, str(name)) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(to_tree(v, where) for v in value if not _is_cache(v))
    if _is_cache(value):
        return None
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        raise ModelError(f"{where} of the forward pass depends on the values of a tensor")
    if isinstance(value, complex):
        return value
    raise ModelError(
        f"{where} of the forward pass is a {type(value).__name__}, which jax.jit cannot return: "
        "wrap the module in one that returns tensors only"
    )


def _is_cache(value: Any) -> bool:
    caches = sys.modules.get("transformers.cache_utils")
    return caches is not None and isinstance(value, caches.Cache)
