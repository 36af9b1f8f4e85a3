"""`lntune-jax inspect`: what would train and what that takes, from a model's config alone."""

from __future__ import annotations

import warnings
from typing import Any

from ..errors import ConfigError
from ..paths import flatten, join
from ..selection.norms import NORM, find_norms
from ..tasks.loading import check_model_directory, describe_memory, tuning_config
from .console import make_console, say
from .options import InspectSettings, Memory

_COLUMNS = {"ln": "LN tuning", "lora": "LoRA, rank 8", "full": "full fine-tuning"}
_ROWS = ("weights", "gradients", "optimizer", "activations", "working", "gathered", "total")


def run(settings: InspectSettings) -> None:
    """Print the trainable leaves, PEFT's line, the adapter's size, and the memory of a step."""
    mesh = parse_mesh(settings.memory.mesh)
    check_model_directory(settings.model, settings.revision)
    import lntune_jax as lnt

    from .. import models
    from ..models.families import find_task
    from ..models.loading import config_from, find_directory

    memory = settings.memory
    found = config_from(find_directory(settings.model, settings.revision, ("config.json",)))
    task = find_task(found) if settings.task == "auto" else TASKS[settings.task]
    options: dict[str, Any] = {
        "task": task,
        "dtype": "float32" if memory.max_length is None else memory.dtype,
        "num_labels": settings.num_labels if task in ("SEQ_CLS", "TOKEN_CLS") else None,
        "remat": memory.remat,
        "scan_layers": memory.scan_layers,
    }
    model = models.from_config(found, quantize=memory.quantize, **options)
    config = tuning_config(settings.model, model.params, (), settings.targets)
    report = lnt.report_params(model.params, config, name_map=model.name_map)
    console = make_console()
    say(console, f"{found.model_type}, {_name_task(model, options['task'])}")
    say(console, report.table(every_leaf=settings.all, fold=not settings.all))
    if config.modules_to_save:
        say(console, f"trained whole: {', '.join(config.modules_to_save)}")
    say(console, f"adapter: {4 * report.trainable:,} bytes of float32 values")
    for line in describe_memory(model):
        say(console, line)
    if settings.trace:
        say(console, compare_by_trace(model))
    if memory.max_length is not None:
        # Full fine-tuning trains the kernels, which it needs in full.
        whole = models.from_config(found, **options) if memory.quantize else model
        say(console, _memory_table(model, whole, config, memory, mesh))


TASKS = {
    "seq_cls": "SEQ_CLS",
    "token_cls": "TOKEN_CLS",
    "causal_lm": "CAUSAL_LM",
    "similarity": None,
    "none": None,
}


def _name_task(model: Any, task: str | None) -> str:
    """What the model is for, in words, and its task's name."""
    if task is None:
        return "without a head (task none)"
    if task == "CAUSAL_LM":
        return "as a language model (task CAUSAL_LM)"
    return f"as a classifier of {model.settings.num_labels} classes (task {task})"


def compare_by_trace(model: Any) -> str:
    """Where the norms of a model by names and by a trace of it differ, in lines to print."""
    import jax
    import numpy as np

    import lntune_jax as lnt

    tokens = jax.ShapeDtypeStruct((1, 4), np.dtype("int32"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lnt.errors.TraceWarning)  # said in the lines
        found = lnt.discover_norms(model.apply, model.params, tokens, tokens)
    traced, leaves = list(found), flatten(model.params)[0]
    modules = find_norms(model.params, leaves)
    named = [join(leaf.path) for leaf in leaves if modules.get(leaf.path[:-1]) == NORM]
    lines = [f"{name} is a norm's by its name only" for name in named if name not in traced]
    lines += [f"{name} is a norm's, but not by its name" for name in traced if name not in named]
    lines += found.describe_rest()
    same = "" if lines else ", the same as by their names"
    lines.append(f"{len(traced):,} leaves of norms{same}")
    return "\n".join(f"trace: {line}" for line in lines)


def parse_mesh(text: str) -> dict[str, int]:
    """The axes of `--mesh`.

    Example:
        >>> parse_mesh("fsdp=8,tensor=2")
        {'fsdp': 8, 'tensor': 2}
    """
    mesh: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        axis, _, size = part.partition("=")
        if not size.isdecimal() or axis in mesh:
            raise ConfigError(
                f"--mesh is {text!r}; expected each axis once, with its size: fsdp=8,tensor=2"
            )
        mesh[axis] = int(size)
    return mesh


def _memory_table(model: Any, whole: Any, config: Any, memory: Memory, mesh: dict[str, int]) -> str:
    from ..models.estimating import estimate_memory

    # LoRA's factors are not followed into the loop.
    methods = [name for name in _COLUMNS if name != "lora" or not memory.scan_layers]
    found = {
        method: estimate_memory(
            whole if method == "full" else model,
            method,
            config=config,
            batch_size=memory.batch_size,
            length=memory.max_length or 1,
            mesh=mesh,
            remat=memory.remat,
        )
        for method in methods
    }
    # Nothing of a model whose query and value projections are one kernel takes LoRA here.
    found = {name: each for name, each in found.items() if each.trainable or name != "lora"}
    estimates = list(found.values())
    most = max(estimate.total for estimate in estimates)
    unit, size_of = ("GB", 1e9) if most >= 1e8 else ("MB", 1e6)
    where = ",".join(f"{axis}={size}" for axis, size in mesh.items()) or "one device"
    loop = ", layers in one loop" if memory.scan_layers else ""
    lines = [
        f"memory of a step on each device, in {unit}:",
        f"{memory.batch_size} x {memory.max_length} tokens, {memory.dtype}, {where}, "
        f"remat {memory.remat}{loop}",
        *([f"kernels in {memory.quantize} (but for full)"] if memory.quantize else []),
        _line("", [_COLUMNS[method] for method in found]),
        _line("trainable", [f"{estimate.trainable:,}" for estimate in estimates]),
    ]
    for name in _ROWS:
        sizes = [getattr(estimate, name) / size_of for estimate in estimates]
        if name != "gathered" or any(sizes):
            lines.append(_line(name, [f"{size:,.3f}" for size in sizes]))
    return "\n".join(lines)


def _line(name: str, cells: Any) -> str:
    return f"{name:12s}" + "".join(f"{cell:>18s}" for cell in cells)
