"""How the weights of the built-in models lie on a mesh: what is wide is divided, the rest whole.

Kernels are divided twice: along one axis over "tensor", so that a device computes its own heads and
its own part of the MLP, and along the other over "fsdp", from which XLA gathers a layer's kernels
for its turn. Norms, heads and what else trains lie on every device.
"""

from __future__ import annotations

from typing import Any

from jax.sharding import PartitionSpec

# Modules whose outputs are divided over "tensor", and those that take such outputs in.
_WIDENING = frozenset(
    (
        *("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "c_attn", "c_fc"),
        *("query", "key", "value", "intermediate", "decoder", "lm_head"),
    )
)
_NARROWING = frozenset(["o_proj", "down_proj", "c_proj", "output"])
# What is drawn anew and trains.
_HEADS = frozenset(["classifier", "score", "pooler"])
# Tables of words; those of positions and types are small.
_TABLES = frozenset(["embed_tokens", "wte", "word_embeddings"])


def base_specs(path: str, leaf: Any) -> PartitionSpec:
    """Give the `PartitionSpec` of a leaf of the built-in models, for the axes "fsdp" and "tensor".

    It is what `from_pretrained(mesh=)` goes by, and a rule for `lntune_jax.make_specs` and
    `lntune_jax.shard_params`, which leave out the axes that a mesh does not have and those that do
    not divide.

    Args:
        path: the leaf's path, with dots.
        leaf: anything with a shape; stacked layers have a first axis more, which is whole.

    Example:
        >>> import jax
        >>> from lntune_jax.models import base_specs
        >>> kernel = jax.ShapeDtypeStruct((8, 16), "float32")
        >>> tuple(base_specs("model.layers.0.mlp.up_proj.kernel", kernel))
        ('fsdp', 'tensor')
        >>> tuple(base_specs("model.layers.0.mlp.down_proj.kernel", kernel))
        ('tensor', 'fsdp')
        >>> tuple(base_specs("model.norm.scale", jax.ShapeDtypeStruct((8,), "float32")))
        ()
    """
    names = path.split(".")
    if names[-1] in ("qvalue", "scale") and names[-3:-1] == ["kernel", "array"]:
        names = names[:-2]  # a part of a quantised kernel lies as the kernel would
    *modules, name = names
    if not modules or not _HEADS.isdisjoint(modules) or name == "scale":
        return PartitionSpec()
    # BERT calls the layer by its place: `intermediate.dense`, `output.dense`.
    is_named = modules[-1] == "dense" and modules[-2:-1] in (["intermediate"], ["output"])
    module = modules[-2] if is_named else modules[-1]
    if name == "embedding":
        return PartitionSpec("tensor", "fsdp") if module in _TABLES else PartitionSpec()
    if name == "bias":
        return _last(leaf, "tensor") if module in _WIDENING else PartitionSpec()
    if module in _WIDENING:
        return _last(leaf, "fsdp", "tensor")
    if module in _NARROWING:
        return _last(leaf, "tensor", "fsdp")
    return _last(leaf, "fsdp", None)


def _last(leaf: Any, *entries: str | None) -> PartitionSpec:
    """A spec of the last axes; those of stacked layers come before them."""
    missing = leaf.ndim - len(entries)
    return PartitionSpec() if missing < 0 else PartitionSpec(*(None,) * missing, *entries)
