"""What a torch module returned, as a pytree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax


@jax.tree_util.register_pytree_with_keys_class
class TorchOutput(Mapping[str, Any]):
    """The fields of a transformers `ModelOutput` as JAX arrays, in a pytree that jit can return.

    Reads like the original: `output.logits`, `output["logits"]`, `output[0]`. A field that the
    model left empty is `None` as an attribute, and no key. Key-value caches are left out.

    Example:
        >>> from lntune_jax.integrations.torchax import TorchOutput
        >>> import jax.numpy as jnp
        >>> output = TorchOutput({"loss": None, "logits": jnp.ones((2, 3))})
        >>> output.logits.shape, output.loss, list(output)
        ((2, 3), None, ['logits'])
    """

    __slots__ = ("_empty", "_fields")

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = {name: value for name, value in fields.items() if value is not None}
        self._empty = tuple(name for name, value in fields.items() if value is None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in TorchOutput.__slots__:
            raise AttributeError(name)
        if name in self._empty:
            return None
        try:
            return self._fields[name]
        except KeyError:
            raise AttributeError(
                f"the model returned no {name!r}; it returned {list(self._fields)}"
            ) from None

    def __getitem__(self, key: str | int) -> Any:
        return self._fields[key] if isinstance(key, str) else tuple(self._fields.values())[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self._fields.items())
        return f"TorchOutput({fields})"

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], Any]:
        """The fields, for JAX."""
        children = [(jax.tree_util.GetAttrKey(n), value) for n, value in self._fields.items()]
        return children, (tuple(self._fields), self._empty)

    @classmethod
    def tree_unflatten(cls, names: Any, children: Any) -> TorchOutput:
        """The inverse, which keeps whatever JAX puts in the arrays' places."""
        output = cls.__new__(cls)
        output._fields, output._empty = dict(zip(names[0], children, strict=True)), names[1]
        return output
