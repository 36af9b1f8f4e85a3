"""Any PyTorch module, any model of transformers 5, as `(params, apply)` for this library.

The way in for architectures that `lntune_jax.models` does not have. It needs torch and torchax
(the extra `torchax`), which runs the module's own Python code on JAX arrays: `jax.jit` compiles
the result, after which no torch is involved.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from ...errors import FreshWeightsWarning, LNTuningError, ModelError
from ...messages import warn
from .module import (
    Skeleton,
    TorchName,
    find_norm_modules,
    list_buffers,
    list_params,
    load_torch,
    load_torchax,
    load_transformers,
    make_skeleton,
    to_array,
)
from .run import Program, run

_AUTO_CLASSES = {
    None: "AutoModel",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "MASKED_LM": "AutoModelForMaskedLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}


@dataclass(frozen=True, eq=False)
class TorchModel:
    """A torch module's weights, and its forward pass as a pure function of them.

    Attributes:
        params: the parameters, `{dotted torch name: array}`, a tied one once, under its first
            name; in the module's dtypes and PyTorch's layouts. The names know which are norms',
            so that `partition_params(params, config)` does not guess.
        buffers: all other tensors of the module, the ones it does not save too.
        norms: the paths of the modules that are LayerNorm or RMSNorm by type, for trees whose
            names were made anew: `partition_params(params, config, norms=model.norms)`.
        config: the transformers config, if the module has one.

    Example:
        >>> import jax.numpy as jnp, torch
        >>> import lntune_jax as lnt
        >>> from lntune_jax.integrations.torchax import from_torch
        >>> model = from_torch(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)))
        >>> halves = lnt.partition_params(model.params, lnt.LNTuningConfig())
        >>> list(halves.trainable)
        ['1.bias', '1.weight']
        >>> model.apply(lnt.merge_params(*halves), jnp.ones((2, 4))).shape
        (2, 4)
    """

    params: dict[str, jax.Array] = field(repr=False)
    buffers: dict[str, jax.Array] = field(repr=False)
    norms: tuple[str, ...]
    config: Any = field(repr=False)
    _skeleton: Skeleton = field(repr=False)
    _programs: dict[Any, Program] = field(repr=False, default_factory=dict)

    def apply(
        self,
        params: Any,
        *args: Any,
        key: Any = None,
        train: bool | None = None,
        buffers: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Runs the module's `forward` on other parameters: pure, for jit, grad and vmap.

        The module is in eval mode, and deterministic, unless there is a key. Nothing is changed
        by a call: no buffer (a batch norm's statistics stay as they are), no module, no setting
        or generator of torch and torchax. Key-value caches are not returned (`use_cache=False`).

        Args:
            params: a dict with the keys and shapes of `self.params`; the dtypes may differ, the
                forward pass then promotes as JAX does.
            *args: of `forward`: JAX or NumPy arrays, in any containers, and plain Python values.
            key: a JAX random key, which turns training mode on: dropout draws from it.
            train: training mode or not; None for whether there is a key.
            buffers: in place of `self.buffers`, which jit keeps in the program as constants.
            **kwargs: of `forward`.

        Returns:
            What `forward` returns: a `TorchOutput` for a transformers model, else arrays and
            tuples and dicts of arrays.

        Raises:
            TreeError: params or buffers do not fit the module; the message names the keys.
            LNTuningError: training mode without a key, or with layers that draw on the host.
            ModelError: `torch.export` cannot trace `forward` for these arguments (its Python
                branches on values, or a shape depends on them); it draws random numbers and there
                is no key; it uses an operator that torchax lacks; or it returns something that jit
                cannot return.

        Example:
            >>> import jax, jax.numpy as jnp, torch
            >>> from lntune_jax.integrations.torchax import from_torch
            >>> model = from_torch(torch.nn.Dropout(0.5))
            >>> model.apply({}, jnp.ones(4)).tolist()
            [1.0, 1.0, 1.0, 1.0]
            >>> sorted(set(model.apply({}, jnp.ones(64), key=jax.random.key(0)).tolist()))
            [0.0, 2.0]
        """
        buffers = self.buffers if buffers is None else buffers
        return run(self._skeleton, self._programs, params, buffers, args, kwargs, key, train)


def from_torch(module: Any) -> TorchModel:
    """Takes a torch module over to JAX: its weights are copied, the module is left as it is.

    A mixture of experts of transformers is computed as `experts_implementation="batched_mm"`
    does, whatever the module's own way: torchax cannot run the others under jit.

    Args:
        module: a `torch.nn.Module`, on any device and in any mode.

    Raises:
        ModelError: torch or torchax cannot be imported, with the versions that can; the module
            is none; a tensor is on the meta device.

    Example:
        >>> import torch
        >>> from lntune_jax.integrations.torchax import from_torch
        >>> model = from_torch(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)))
        >>> model.norms, list(model.params)
        (('1',), ['0.weight', '0.bias', '1.weight', '1.bias'])
    """
    return _from_torch(module, share=False)


def from_pretrained(
    name_or_directory: str | Path,
    task: str | None = None,
    *,
    auto_class: str | None = None,
    dtype: Any = "float32",
    seed: int = 0,
    **settings: Any,
) -> TorchModel:
    """Loads a checkpoint with transformers and takes it over to JAX.

    Only safetensors are read, and no code from the checkpoint is run.

    Args:
        name_or_directory: a model directory, or an id on the Hugging Face hub.
        task: `None` for the bare model, "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "CAUSAL_LM",
            "MASKED_LM" or "SEQ_2_SEQ_LM".
        auto_class: a class of transformers in place of the task's, such as
            "AutoModelForImageClassification" or "CLIPModel".
        dtype: of the weights: "float32", "bfloat16" or "auto" for the checkpoint's.
        seed: for weights that the checkpoint lacks.
        **settings: fields of the config to change, and options of transformers' own
            `from_pretrained`: `num_labels=2`, `revision="..."`, `attn_implementation="eager"`.

    Raises:
        ModelError: torch, torchax or transformers cannot be imported, the task or class is not
            known, or transformers cannot load the checkpoint.

    Warns:
        FreshWeightsWarning: weights outside the head were drawn at random.

    Example:
        >>> from lntune_jax.integrations.torchax import from_pretrained
        >>> try:
        ...     from_pretrained("./no-such-directory", task="SEQ_CLS")
        ... except ValueError as error:
        ...     print(str(error).split(":")[0])
        transformers cannot load './no-such-directory'
    """
    torch, transformers = load_torch(), load_transformers()
    load_torchax()
    if task not in _AUTO_CLASSES:
        raise ModelError(f"task is {task!r}; supported: {', '.join(map(repr, _AUTO_CLASSES))}")
    loader: Any = getattr(transformers, auto_class or _AUTO_CLASSES[task], None)
    if not hasattr(loader, "from_pretrained"):
        raise ModelError(f"auto_class is {auto_class!r}, which is no model class of transformers")
    fixed = {"trust_remote_code": False, "use_safetensors": True, "output_loading_info": True}
    if changed := sorted(fixed.keys() & settings.keys()):
        raise LNTuningError(f"{changed[0]} cannot be changed: it is {fixed[changed[0]]} here")
    name = str(name_or_directory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module, info = loader.from_pretrained(name, dtype=dtype, **fixed, **settings)
        except Exception as error:  # a damaged file, a wrong id, a class that does not fit
            raise ModelError(f"transformers cannot load {name!r}: {error}") from error
    _warn_if_fresh(module, sorted(info["missing_keys"]))
    return _from_torch(module, share=True)


def _from_torch(module: Any, *, share: bool) -> TorchModel:
    load_torchax()
    if not isinstance(module, load_torch().nn.Module):
        raise ModelError(f"from_torch takes a torch.nn.Module, not a {type(module).__name__}")
    params, buffers = list_params(module), list_buffers(module)
    norms = find_norm_modules(module, params)
    names = {n: TorchName(n, is_norm=n.rpartition(".")[0] in norms) for n in params}
    return TorchModel(
        params={names[n]: to_array(n, tensor, share=share) for n, tensor in params.items()},
        buffers={name: to_array(name, tensor, share=share) for name, tensor in buffers.items()},
        norms=norms,
        config=getattr(module, "config", None),
        _skeleton=make_skeleton(module, params, buffers),
    )


def _warn_if_fresh(module: Any, missing: list[str]) -> None:
    prefix = module.base_model_prefix
    headless = not prefix or not hasattr(module, prefix)
    fresh = [name for name in missing if headless or name.startswith(f"{prefix}.")]
    if fresh:
        warn(
            f"the checkpoint does not hold {fresh[:5]}: drawn at random",
            FreshWeightsWarning,
        )
