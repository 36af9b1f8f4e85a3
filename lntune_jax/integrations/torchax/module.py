"""What a torch module holds: its tensors by name, its norms by type, and its skeleton.

The skeleton is a copy of the module without its weights. To run it, it is copied once more with
JAX arrays in the tensors' places (`fill`): the caller's module is never touched, tied weights
stay tied, and nothing that a forward pass stores on its modules outlives the call. What the
forward pass returns is a `TorchOutput`. Importing torch, late, is here too.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import platform
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...errors import ModelError

# The pair that is tested. torchax reads torch's internals, so it follows torch's versions
# closely: the stable torchax 0.0.13 fails on torch 2.13.0.
KNOWN = {"torch": "2.13.0", "torchax": "0.0.14.dev20261026"}

# LlamaRMSNorm, T5LayerNorm, MambaRMSNormGated, NemotronLayerNorm1P, Phi's and Whisper's own.
_NORM_CLASS = re.compile(r"(LayerNorm|R[Mm][Ss]Norm)(Gated|1P|2d)?$")


class TorchName(str):
    """The name of a parameter, which also says whether the parameter is a norm's, by its type.

    A key of `TorchModel.params`. It is a string in all else, so that the dict stays a dict for
    `jax.tree.map`, jit, optax, Orbax and `dict(...)`, and takes its norms along.

    Example:
        >>> name = TorchName("layers.0.final.weight", is_norm=True)
        >>> name == "layers.0.final.weight", {**{name: 1}}, [n.is_norm for n in dict({name: 1})]
        (True, {'layers.0.final.weight': 1}, [True])
    """

    is_norm: bool

    def __new__(cls, name: str, is_norm: bool = False) -> TorchName:
        """Makes a name."""
        self = super().__new__(cls, name)
        self.is_norm = is_norm
        return self


class Skeleton(NamedTuple):
    """A module without weights.

    Attributes:
        module: the module, a meta tensor in the place of each tensor.
        params: those meta tensors, by the names of the parameters.
        buffers: those of the buffers.
    """

    module: Any
    params: dict[str, Any]
    buffers: dict[str, Any]


def make_skeleton(module: Any, params: Mapping[str, Any], buffers: Mapping[str, Any]) -> Skeleton:
    """Copies a module but for the tensors named in `params` and `buffers`."""
    torch = load_torch()

    def strip(tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {name: torch.empty_like(t, device="meta") for name, t in tensors.items()}

    bare = Skeleton(module, strip(params), strip(buffers))
    tensors = {**params, **buffers}
    replacements = {**bare.params, **bare.buffers}
    copied = _copy(module, tensors, replacements)
    for part in copied.modules():
        _settle_config(getattr(part, "config", None))
    return bare._replace(module=copied)


def _settle_config(config: Any) -> None:
    """Sets the way to compute a mixture of experts that jit compiles, and no cache.

    The other ways call a kernel that torchax lacks, or branch on values.
    """
    if getattr(config, "_experts_implementation", None) is not None:
        config._experts_implementation = "batched_mm"
    if getattr(config, "use_cache", False):
        config.use_cache = False


def fill(skeleton: Skeleton, values: Mapping[str, Any]) -> Any:
    """A module of its own for one call: the skeleton's, with `values` in the tensors' places."""
    return _copy(skeleton.module, {**skeleton.params, **skeleton.buffers}, values)


def _copy(module: Any, tensors: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    # deepcopy takes what the memo holds for an object as that object's copy, wherever it occurs.
    return copy.deepcopy(module, {id(tensor): values[name] for name, tensor in tensors.items()})


def list_params(module: Any) -> dict[str, Any]:
    """The parameters by their dotted names; a tied one once, under its first name."""
    return dict(module.named_parameters())


def list_buffers(module: Any) -> dict[str, Any]:
    """All other tensors: buffers, persistent or not, and plain attributes that are tensors."""
    seen = {id(tensor) for tensor in module.parameters()}
    buffers: dict[str, Any] = {}
    for name, tensor in _list_tensors(module):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            buffers[name] = tensor
    return buffers


def _list_tensors(module: Any) -> Iterator[tuple[str, Any]]:
    torch = load_torch()
    yield from module.named_buffers()
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, torch.Tensor):
                yield _join(path, name), value


def find_norm_modules(module: Any, params: Mapping[str, Any]) -> tuple[str, ...]:
    """The paths of the LayerNorm and RMSNorm modules that hold parameters, by their types."""
    owners = {name.rpartition(".")[0] for name in params}
    return tuple(path for path, part in module.named_modules() if path in owners and _is_norm(part))


def _is_norm(module: Any) -> bool:
    torch = load_torch()
    if isinstance(module, torch.nn.LayerNorm | torch.nn.RMSNorm):
        return True
    # A class that holds modules itself (an adaptive norm with a Linear, a list of norms for each
    # head) is no norm; the norms among its modules are found on their own.
    names = (parent.__name__ for parent in type(module).__mro__)
    return any(map(_NORM_CLASS.search, names)) and not any(module.children())


def to_array(name: str, tensor: Any, *, share: bool = False) -> jax.Array:
    """The values of a torch tensor, in its dtype; 64 bits become 32 unless JAX has them on.

    Args:
        name: for the error.
        tensor: on any device but meta.
        share: whether the array may be a view of the tensor's memory, which nobody else writes.

    Raises:
        ModelError: the tensor has no values.
    """
    if tensor.is_meta:
        raise ModelError(
            f"the tensor {name!r} is on the meta device, without values: load the weights first"
        )
    array = to_numpy(tensor)
    return jnp.asarray(array) if share else jnp.array(array)


def to_numpy(tensor: Any) -> np.ndarray:
    """The values of a torch tensor, in its dtype."""
    tensor = tensor.detach().cpu().contiguous()
    try:
        return tensor.numpy()
    except TypeError:  # NumPy itself has no bfloat16 and no float8
        torch = load_torch()
        bits = {1: torch.uint8, 2: torch.uint16}[tensor.element_size()]
        return tensor.view(bits).numpy().view(jnp.dtype(str(tensor.dtype).rpartition(".")[2]))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


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


def load_torch() -> Any:
    """Imports torch.

    Raises:
        ModelError: it is not installed, or cannot be imported.
    """
    return _load("torch")


def load_torchax() -> Any:
    """Imports torchax, the bridge from PyTorch to JAX.

    Raises:
        ModelError: torch or torchax is not installed, or cannot be imported.
    """
    _load("torch")
    return _load("torchax")


def load_transformers() -> Any:
    """Imports transformers.

    Raises:
        ModelError: it is not installed, or cannot be imported.
    """
    return _load("transformers")


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # torchax on an unknown torch fails with an AttributeError
        raise ModelError(_explain(name, error)) from error


def _explain(name: str, error: Exception) -> str:
    missing = isinstance(error, ModuleNotFoundError) and error.name == name
    reason = "is not installed" if missing else f"cannot be imported ({_describe(error)})"
    packages = ("torch", "torchax", "transformers", "jax")
    found = ", ".join(f"{package} {_get_version(package)}" for package in packages)
    command = " ".join(f"{package}=={version}" for package, version in KNOWN.items())
    if name == "transformers":
        command = "'transformers>=5,<6'"
    return (
        f"lntune_jax.integrations.torchax needs {name}, which {reason}. Found: {found}, Python "
        f"{platform.python_version()}. Known to work together: torch {KNOWN['torch']} with "
        f"torchax {KNOWN['torchax']}. Run: pip install {command}"
    )


def _describe(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _get_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(none)"
