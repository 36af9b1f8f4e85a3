"""From trainable leaves to a PEFT adapter.

The values go over bit for bit (a name map with an offset apart); only names, the layout of
kernels, and stacks of layers change.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.processes import write_on_first_process
from ..config import LNTuningConfig
from ..errors import AdapterError
from ..names.maps import NameMap, get_name_map
from ..selection.selection import Selection
from ..storage.directories import resolve_path
from .files import check_target, write_key, write_peft_directory
from .parameters import Parameters, collect_parameters


def export_peft(
    path: str | os.PathLike[str],
    trainable: Mapping[str, Any],
    config: LNTuningConfig | Selection,
    *,
    base: Any = None,
    norms: Iterable[str] | None = None,
    name_map: str | NameMap | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes an adapter that PEFT loads: `adapter_config.json` and `adapter_model.safetensors`.

    Targets that PEFT would read otherwise (expressions, containers, our defaults) are written out
    as module paths; `model_type` and `param_dtype`, which PEFT does not know, are left out. In a
    run of several processes each must call this; the first one writes.

    Args:
        path: the directory to make. Its parents are made too.
        trainable: `{leaf path: array}`, as `partition_params` gave it or after training.
        config: the config that `partition_params` was given, or the `Selection`.
        base: the parameters that were tuned, or the frozen half of `partition_params`. Needed only
            where PEFT's file holds more than what trained: a module of which some leaves trained,
            or the head of a classification task that did not train.
        norms: as given to `partition_params`, if it was; read together with `base`.
        name_map: the name of a table (`lntune_jax.peft.NAME_MAPS`) or a `NameMap`, for trees
            whose module paths are not those of transformers.
        overwrite: whether a PEFT adapter that is there is replaced, its model card with it.

    Returns:
        The absolute path of the directory.

    Raises:
        AdapterError: the path exists; a leaf has no name in transformers; a value is not finite;
            PEFT needs more than the leaves that trained; an embedding trained that the model
            seems to share with its output; or the file system refuses.
        ConfigError: `name_map` is not known.
        SelectionError: the config selects nothing in `base`.
        TreeError: the layout of a saved kernel cannot be known, or two leaves are one parameter.

    Source: PEFT's `get_peft_model_state_dict` (src/peft/utils/save_and_load.py, 0.21).

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import lntune_jax as lnt
        >>> params = {"model": {"norm": {"scale": jnp.ones(4)}}}
        >>> config = lnt.LNTuningConfig(target_modules=["norm"])
        >>> trainable, frozen = lnt.partition_params(params, config)
        >>> path = lnt.export_peft(tempfile.mkdtemp() + "/peft", trainable, config)
        >>> sorted(entry.name for entry in path.iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    target = resolve_path(path, error=AdapterError)
    parameters = collect_parameters(
        trainable, config, base=base, norms=norms, name_map=get_name_map(name_map)
    )
    if not parameters.norms:
        raise AdapterError(
            "the adapter holds saved modules alone, and PEFT loads none without a norm: train at "
            "least one (target_modules), or keep the leaves with save_adapter"
        )

    def write() -> None:
        check_target(target, overwrite)
        tensors = _make_tensors(parameters)
        write_peft_directory(target, tensors, parameters.config, overwrite=overwrite)

    write_on_first_process(write)
    return target


def _make_tensors(parameters: Parameters) -> dict[str, np.ndarray]:
    return {
        write_key(name, is_norm=name in parameters.norms): array
        for name, array in parameters.arrays.items()
    }
