"""The leaves of a training state as named numpy arrays, and back into a state like another.

Names are JAX's own key paths, so NamedTuples and empty nodes of an optimizer need no storing: the
state that is restored into brings them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import AnotherProcessError, CheckpointError, LNTuningError
from ..messages import list_names
from ..storage.leaves import hash_array, to_numpy
from ..storage.leaves import place_leaf as put_leaf

_SCALARS = (bool, int, float, complex)


def list_leaves(state: Any) -> dict[str, Any]:
    """The leaves of a state by their key paths.

    Example:
        >>> list_leaves({"mu": (1, 2)})
        {"['mu'][0]": 1, "['mu'][1]": 2}
    """
    found, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in found}


def list_classes(state: Any) -> dict[str, str]:
    """The classes of a state's NamedTuples by their key paths: an optimizer's are its own.

    The leaves alone do not tell Adam's state from AdaBelief's.

    Example:
        >>> import optax
        >>> list_classes((optax.sgd(0.1).init({}), {}))
        {'[0][0]': 'EmptyState', '[0][1]': 'EmptyState'}
    """
    found: dict[str, str] = {}

    def visit(node: Any, keys: tuple[Any, ...]) -> None:
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            found[jax.tree_util.keystr(keys)] = type(node).__name__
        children, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
        for own, child in children:
            if own:  # a leaf is its own child
                visit(child, (*keys, *own))

    visit(state, ())
    return found


def read_leaf(path: str, leaf: Any) -> np.ndarray:
    """The values of a leaf; of a typed random key, its data.

    Raises:
        CheckpointError: the leaf is no array or number, or has no values.
    """
    if not isinstance(leaf, _SCALARS) and not hasattr(leaf, "dtype"):
        raise CheckpointError(
            f"the leaf {path!r} of the state is a {type(leaf).__name__}, not an array or a number: "
            "make it a static field, or pass it in extra"
        )
    if _is_key(leaf) and isinstance(leaf, jax.Array) and not leaf.is_deleted():
        return np.asarray(jax.random.key_data(leaf))
    try:
        return to_numpy(path, leaf)
    except AnotherProcessError:
        raise
    except LNTuningError as error:
        raise CheckpointError(str(error)) from error


def describe(leaf: Any, array: np.ndarray) -> dict[str, Any]:
    """What is recorded of a leaf, as JSON values: what it is, and how it is stored."""
    return {
        **_describe_kind(leaf),
        "stored_shape": list(array.shape),
        "stored_dtype": array.dtype.name,
        "key_impl": str(jax.random.key_impl(leaf)) if _is_key(leaf) else None,
        "sha256": hash_array(array),
    }


def check_structure(directory: Path, manifest: Mapping[str, Any], likes: Mapping[str, Any]) -> None:
    """Compares what was saved with the leaves of the state to restore into.

    Raises:
        CheckpointError: lists the paths that are missing, unexpected or of another shape or dtype.
    """
    wrong = []
    if len(manifest) != len(likes):
        wrong.append(f"{len(manifest):,} leaves saved, {len(likes):,} in like_state")
    missing = [path for path in likes if path not in manifest]
    unexpected = [path for path in manifest if path not in likes]
    wrong += [f"not in the checkpoint: {list_names(missing)}"] if missing else []
    wrong += [f"not in like_state: {list_names(unexpected)}"] if unexpected else []
    for path in likes:
        found = _describe_kind(likes[path])
        if path in manifest and any(manifest[path][field] != found[field] for field in found):
            saved = {field: manifest[path][field] for field in found}
            wrong.append(f"{path!r} is {_show(found)} in like_state, {_show(saved)} saved")
    if wrong:
        raise CheckpointError(
            f"the checkpoint {directory} does not fit like_state: {list_names(wrong, str)}. Make "
            "like_state with the config and optimizer of the run that saved it, or start in "
            "another directory"
        )


def check_classes(directory: Path, saved: Mapping[str, str], likes: Mapping[str, str]) -> None:
    """Compares the NamedTuples of what was saved with those of the state to restore into.

    Raises:
        CheckpointError: another optimizer has made one of the two.
    """
    paths = [path for path in {**saved, **likes} if saved.get(path) != likes.get(path)]
    if paths:
        wrong = [
            f"{path!r} is a {likes.get(path, 'plain node')} in like_state, a "
            f"{saved.get(path, 'plain node')} saved"
            for path in paths
        ]
        raise CheckpointError(
            f"the checkpoint {directory} is of another optimizer: {list_names(wrong, str)}. Make "
            "like_state with the optimizer of the run that saved it, or start in another directory"
        )


def make_target(record: Mapping[str, Any]) -> np.ndarray:
    """An array of the shape and dtype in which a leaf is stored."""
    return np.empty(tuple(record["stored_shape"]), jnp.dtype(record["stored_dtype"]))


def check_values(directory: Path, manifest: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Compares the arrays that were read with their checksums.

    Raises:
        CheckpointError: lists the leaves that are damaged.
    """
    damaged = [
        path
        for path, record in manifest.items()
        if path not in arrays or hash_array(np.asarray(arrays[path])) != record["sha256"]
    ]
    if damaged:
        raise CheckpointError(
            f"the leaves {list_names(damaged)} of the checkpoint {directory} have a wrong "
            "checksum. It is damaged: delete this step's directory to go on from the one before it"
        )


def place_leaf(path: str, array: np.ndarray, like: Any, record: Mapping[str, Any]) -> Any:
    """The values as a leaf of the same type and sharding as `like`."""
    if isinstance(like, _SCALARS):
        return type(like)(array[()])
    if _is_key(like) and isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        return _place_key(array, like, record["key_impl"])
    return put_leaf(path, array, like, CheckpointError)


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe_kind(leaf: Any) -> dict[str, Any]:
    if isinstance(leaf, _SCALARS):
        return {"shape": [], "dtype": type(leaf).__name__}
    return {"shape": list(np.shape(leaf)), "dtype": str(leaf.dtype)}


def _show(kind: Mapping[str, Any]) -> str:
    return f"{kind['dtype']}{kind['shape']}"


def _place_key(array: np.ndarray, like: Any, impl: str) -> jax.Array:
    key = jax.random.wrap_key_data(jnp.asarray(array), impl=impl)
    if isinstance(like, jax.Array) and not like.committed:
        return key
    return key if like.sharding is None else jax.device_put(key, like.sharding)
