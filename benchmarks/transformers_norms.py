"""The modules of every architecture of transformers, on the meta device: names, shapes and types.

Writes the table that `tests/selection/test_uncertain_norms.py` measures the library's rules by:
for each architecture the modules that hold parameters or buffers, and whether the module's type is
a LayerNorm's or an RMSNorm's. Each is built from its default config, without weights. Layers that
are alike (the same path but for the numbers in it, the same type, the same shapes) are kept once.

    python benchmarks/transformers_norms.py tests/reference/transformers_norms.json.gz

Needs PyTorch and transformers; takes some minutes. What cannot be built is in the table, with why.
"""

from __future__ import annotations

import gc
import gzip
import importlib
import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

SECONDS = 120  # for one architecture
# Types that are neither PyTorch's LayerNorm nor its RMSNorm are known by their names.
NORM_TYPES = re.compile(r"RMS_?Norm|Layer_?Norm", re.IGNORECASE)
OTHER_TYPES = re.compile(r"GroupNorm|BatchNorm|InstanceNorm", re.IGNORECASE)
# MobileBERT's NoNorm scales and shifts where other models normalise, and PEFT tunes it as a norm.
ALSO_NORMS = {"NoNorm"}


def main(output: str) -> None:
    """Builds all and writes the table."""
    table: dict[str, Any] = {}
    failed: dict[str, str] = {}
    signal.signal(signal.SIGALRM, _stop)
    for model_type in CONFIG_MAPPING_NAMES:
        try:
            signal.alarm(SECONDS)
            table[model_type] = list_modules(build(model_type))
        except (Exception, SystemExit) as error:  # whatever a default config does not bear
            failed[model_type] = f"{type(error).__name__}: {error}"[:160]
        finally:
            signal.alarm(0)
        gc.collect()
        print(model_type, failed.get(model_type, "built"), file=sys.stderr, flush=True)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    text = json.dumps({"versions": versions, "failed": failed, "architectures": table})
    Path(output).write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{len(table)} architectures, {len(failed)} not built", file=sys.stderr)


def build(model_type: str) -> torch.nn.Module:
    """A model of this type on the meta device, from its default config."""
    config_class = CONFIG_MAPPING[model_type]
    errors: list[Exception] = []
    for model_class in _list_classes(model_type, config_class):
        try:
            with torch.device("meta"):
                return model_class(config_class())
        except TimeoutError:
            raise
        except Exception as error:
            errors.append(error)
    raise errors[0] if errors else LookupError("no model class takes this config")


def list_modules(model: torch.nn.Module) -> list[Any]:
    """Path, type, whether it is a norm, shapes of parameters and of buffers; alike layers once."""
    found, seen = [], set()
    for path, module in model.named_modules():
        parameters = {n: list(p.shape) for n, p in module.named_parameters(recurse=False)}
        buffers = {n: list(b.shape) for n, b in module.named_buffers(recurse=False)}
        if not parameters and not buffers:
            continue
        shapes = tuple(sorted((n, tuple(s)) for n, s in (parameters | buffers).items()))
        alike = (re.sub(r"\d+", "#", path), type(module).__name__, shapes)
        if alike not in seen:
            seen.add(alike)
            kind = type(module).__name__
            found.append([path, kind, is_norm(module, parameters), parameters, buffers])
    return found


def is_norm(module: torch.nn.Module, parameters: Any) -> bool:
    """Whether a module's type is a LayerNorm's or an RMSNorm's, and holds a scale of its own."""
    types = torch.nn.modules
    if isinstance(module, types.GroupNorm | types.batchnorm._NormBase):
        return False
    if not parameters:
        return False
    if isinstance(module, torch.nn.LayerNorm | torch.nn.RMSNorm):
        return True
    name = type(module).__name__
    if name in ALSO_NORMS:
        return True
    only_vectors = all(len(shape) == 1 for shape in parameters.values())
    return bool(NORM_TYPES.search(name)) and not OTHER_TYPES.search(name) and only_vectors


def _list_classes(model_type: str, config_class: Any) -> list[Any]:
    """The model classes to try: the one for `AutoModel`, then what the module holds for it."""
    names = MODEL_MAPPING_NAMES.get(model_type, ())
    names = [names] if isinstance(names, str) else names
    classes = [getattr(transformers, name, None) for name in names]
    where = config_class.__module__.replace(".configuration_", ".modeling_")
    for value in vars(importlib.import_module(where)).values():
        is_model = isinstance(value, type) and issubclass(value, PreTrainedModel)
        if is_model and value.config_class is config_class:
            classes.append(value)
    found = [c for c in dict.fromkeys(classes) if c is not None]
    return [c for c in found if not c.__name__.endswith("PreTrainedModel")]


def _stop(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


if __name__ == "__main__":
    main(sys.argv[1])
