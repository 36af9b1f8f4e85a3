"""The leaves of an NNX model by their paths, and those of Flax's own norms."""

from flax import nnx


def list_paths(state):
    return {".".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}


def list_norms(model):
    """The leaves of Flax's own norms, by the types of the modules: the truth to compare with."""
    found = set()
    for path, module in nnx.iter_modules(model):
        if isinstance(module, nnx.LayerNorm | nnx.RMSNorm):
            leaves = nnx.to_flat_state(nnx.state(module, nnx.Param))
            found |= {".".join(map(str, (*path, *leaf))) for leaf, _ in leaves}
    return found
