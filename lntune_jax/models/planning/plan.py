"""What a training step holds, computes and sends on chips that you do not have: `plan`.

The step is compiled for a described slice, from the model's config alone. Where it does not fit,
a few more are compiled: with more computed again, then with fewer rows, then with shorter ones.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import jax.numpy as jnp

from lntune_jax.config import TASK_HEADS, LNTuningConfig
from lntune_jax.errors import ConfigError, ModelError
from lntune_jax.selection import report_params
from lntune_jax.storage.sealed import read_json

from ..estimating.memory import check_base, check_mesh, check_numbers, estimate_memory, total_bytes
from ..families.registry import FAMILIES, find_task
from ..loading.sources import config_from, config_of, find_directory
from ..model import REMATS, PretrainedModel, from_config, read_options
from ..nn.attention import find_kernel
from ..nn.sharding import ROW_AXES
from .chips import read_slice
from .compiled import Compiled, Request, check_compiler, compile_apart
from .report import Attempt, Plan
from .steps import count_products

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..types import GivenOptions
    from .chips import Slice

METHODS = ("ln", "lora", "full")
_TRIES = 5  # more compilations than these are not made to find what fits
_SHORTEST = 128


def plan(
    model: Any,
    *,
    chips: str,
    mesh: Mapping[str, int] | None = None,
    batch: int | None = None,
    length: int = 2048,
    method: str = "ln",
    compare: bool = False,
    search: bool = True,
    rank: int = 8,
    task: str | None = "auto",
    num_labels: int | None = None,
    revision: str | None = None,
    progress: Callable[[str], None] | None = None,
    **options: Unpack[GivenOptions],
) -> Plan:
    """Compile a training step for chips that you do not have, and say what it takes there.

    Nothing but the model's config is read, and no chip takes part. The compiler is that of the
    chips: libtpu for TPUs (`pip install 'lntune-jax[plan]'`), JAX's plugin for CUDA for GPUs. It
    runs in a process of its own for seconds or, of large models, minutes; your devices and JAX's
    settings stay as they are.

    Args:
        model: a transformers config, the dict of a config.json, such a file or a directory with
            one, an id on the Hugging Face hub, or a model, whose options are taken where none are
            given here.
        chips: kind and number: "v4-8", "v5e-8", "v5p-256", "v6e-4", "7x-4", "h100", "h200". The
            number is of chips, where clouds count the cores of v4, v5p and 7x.
        mesh: sizes of the axes "data", "fsdp" and "tensor", whose product is the number of
            devices. `None` for "fsdp" over all.
        batch: rows of all devices together. `None` for one row for each place along "data" and
            "fsdp".
        length: tokens in a row.
        method: "ln", "lora" (on the query and value projections) or "full".
        compare: also compile the other two.
        search: where the step does not fit, whether to look for what does.
        rank: of LoRA's factors.
        task: as in `from_config`; "auto" for what the model is usually tuned for.
        num_labels: as in `from_config`.
        revision: as in `from_config`.
        progress: called with a line before each compilation.
        options: as in `from_config`. Unless given, `dtype` is "bfloat16" and a decoder's layers
            are scanned.

    Raises:
        TypeError: there is no option of a name.
        ConfigError: there are no such chips, the mesh is not one of them, the rows do not divide,
            or a method or size is not supported.
        ModelError: as `from_config`; the compiler is not installed, or fails.

    Example:
        >>> import lntune_jax as lnt
        >>> tiny = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
        >>> try:
        ...     lnt.models.plan(tiny, chips="v5e-8", mesh={"fsdp": 4})
        ... except ValueError as error:
        ...     print(error)
        mesh has fsdp=4, which is 4 devices, but v5e-8 has 8
    """
    read_options(options, plan)
    check_numbers(method, length=length, rank=rank)
    place = read_slice(chips)
    sizes = check_place(place, mesh)
    groups = math.prod(sizes.get(axis, 1) for axis in ROW_AXES)
    rows = groups if batch is None else batch
    check_numbers(method, batch=rows)
    if rows % groups:
        raise ConfigError(
            f"batch is {rows}, which the {groups} places along {' x '.join(ROW_AXES)} of the mesh "
            f"do not divide; pass {max(1, rows // groups) * groups}"
        )
    config, made, task = _read_model(model, task, revision, dict(options))
    built = from_config(config, task, num_labels=num_labels, **made)
    check_base(method, built.quantize)
    check_length(built, length)
    check_attention(built.options.attention, place)
    check_compiler(place)
    given = dataclasses.asdict(built.options) | {"task": task, "num_labels": num_labels}
    fields = {name: value for name, value in given.items() if _is_own(built, name)}
    asked = Request(
        config.to_dict(), fields, method, place.chip.name, place.count, sizes, rows, length, rank
    )
    say = progress or (lambda line: None)
    methods = [method]
    if compare:
        methods += [
            each
            for each in METHODS
            if each != method and not (each == "full" and built.quantize is not None)
        ]
    steps = {}
    for each in methods:
        steps[each] = compile_said(replace(asked, method=each), say)
    estimates = {
        each: _estimate(built, place, each, sizes, rows // groups, length) for each in methods
    }
    first = steps[method]
    tried: tuple[Attempt, ...] = ()
    if search and not first.fits and not _is_hopeless(built, method, sizes, place):
        tried = find_fitting(asked, first, groups, lambda request: compile_said(request, say))
    report = report_params(built.params, _targets(built), name_map=built.name_map)
    return Plan(
        built.settings.model_type,
        task,
        report.total,
        report.trainable,
        count_products(built),
        place,
        sizes,
        rows,
        length,
        rank,
        dataclasses.asdict(built.options),
        steps,
        estimates,
        tried,
    )


def check_place(place: Slice, mesh: Mapping[str, int] | None) -> dict[str, int]:
    """Check that a mesh is one of all devices of a slice.

    Raises:
        ConfigError: it is not.
    """
    sizes = {"fsdp": place.devices} if mesh is None else check_mesh(mesh)
    sizes = sizes or {"fsdp": 1}
    count = math.prod(sizes.values())
    if count != place.devices:
        shown = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        each = f", {place.chip.devices} on a chip" if place.chip.devices > 1 else ""
        raise ConfigError(
            f"mesh has {shown}, which is {count} devices, but {place} has {place.devices}{each}"
        )
    return sizes


def check_length(model: PretrainedModel, length: int) -> None:
    """Check that a model has positions for rows of a length.

    Raises:
        ConfigError: it has fewer.
    """
    if length > model.max_length:
        raise ConfigError(
            f"length is {length}, but the model has positions for {model.max_length}: the config's "
            "max_position_embeddings"
        )


def check_attention(attention: str, place: Slice) -> None:
    """Check that a kernel for attention is one of the chips.

    Raises:
        ConfigError: it is of others.
    """
    of = {"cudnn": "cuda", "splash": "tpu"}.get(attention, place.chip.platform)
    if of != place.chip.platform:
        kind = "GPUs" if of == "cuda" else "TPUs"
        raise ConfigError(
            f"attention is {attention!r}, which is of {kind}, but chips is {place}; leave it out"
        )


def find_fitting(
    asked: Request,
    first: Compiled,
    groups: int,
    compile_one: Callable[[Request], Compiled],
    tries: int = _TRIES,
) -> tuple[Attempt, ...]:
    """Compile what holds less than a step that does not fit, until one fits.

    First more is computed again, then there are fewer rows, then shorter ones. A number of rows or
    tokens is passed over where a program that shrinks with it would still be too large.

    Args:
        asked: the step.
        first: what the compiler says of it.
        groups: how many parts the rows are divided into.
        compile_one: compiles a step.
        tries: how many to compile at most.
    """
    found: list[Attempt] = []
    last, needed = asked, first.needed

    def attempt(request: Request) -> bool:
        nonlocal last, needed
        compiled = compile_one(request)
        remat = request.options.get("remat", "none")
        found.append(Attempt(remat, request.batch, request.length, compiled))
        last, needed = request, compiled.needed
        return compiled.fits

    if "remat" in asked.options:
        weaker = REMATS[: REMATS.index(asked.options["remat"]) + 1]
        for remat in ("dots_with_no_batch_dims_saveable", "full"):
            if remat not in weaker and len(found) < tries:
                options = asked.options | {"remat": remat}
                if attempt(replace(asked, options=options)):
                    return tuple(found)
    while len(found) < tries:
        smaller = _shrink(last, needed, first.memory, groups)
        if smaller is None or attempt(smaller):
            break
    return tuple(found)


def _shrink(last: Request, needed: int, memory: int, groups: int) -> Request | None:
    """The next step to try: half the rows, or half as long ones, or half of that again."""
    own, length = last.batch // groups, last.length
    while own > 1 or length > _SHORTEST:
        if own > 1:
            own = (own + 1) // 2
        else:
            length //= 2
        share = own * groups * length / (last.batch * last.length)
        if needed * share < 1.2 * memory:
            return replace(last, batch=own * groups, length=length)
    return None


def compile_said(request: Request, say: Callable[[str], None]) -> Compiled:
    """Compile a step, and say so before and after."""
    tokens = f"{request.batch} x {request.length:,} tokens"
    remat = request.options.get("remat")
    how = f", remat {remat}" if remat else ""
    say(f"compiling {request.method} for {request.place}: {tokens}{how}")
    found = compile_apart(request)
    what = f"needs {found.needed / 1e9:.2f} of {found.memory / 1e9:.2f} GB a device"
    say(f"  {'fits' if found.fits else 'does not fit'}: {what} ({found.seconds:.0f} s)")
    return found


def _read_model(
    model: Any, task: str | None, revision: str | None, given: dict[str, Any]
) -> tuple[Any, dict[str, Any], str | None]:
    """The config of a model, the options it is made with, and its task."""
    own: dict[str, Any] = {"dtype": "bfloat16"}
    if isinstance(model, PretrainedModel):
        config, own = model.config, dataclasses.asdict(model.options)
        task = model.task if task == "auto" else task
        if config is None:
            raise ModelError("model has no config, of which a plan is made; pass its config")
    elif isinstance(model, str | os.PathLike):
        config = _read_config(Path(model), model, revision)
    else:
        config = config_of(model, "the config") if isinstance(model, dict) else model
    model_type = getattr(config, "model_type", None)
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ModelError(
            f"model is {type(config).__name__} of the model_type {model_type!r}; a plan is of a "
            f"config of one of {known}"
        )
    kind = FAMILIES[model_type].kind
    if not isinstance(model, PretrainedModel) and "scan_layers" in kind.options:
        own["scan_layers"] = not given.get("quantize")
    return config, own | given, find_task(config) if task == "auto" else task


def _read_config(path: Path, name: Any, revision: str | None) -> Any:
    if path.suffix == ".json" and path.is_file():
        try:
            return config_of(read_json(path), str(path))
        except (OSError, ValueError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{path}: not a JSON file ({error})") from error
    return config_from(find_directory(name, revision, ("config.json",)))


def _is_own(model: PretrainedModel, name: str) -> bool:
    """Whether an option is one that the model's family reads."""
    return name in (
        "task",
        "num_labels",
        "dtype",
        *FAMILIES[model.settings.model_type].kind.options,
    )


def _targets(model: PretrainedModel) -> LNTuningConfig:
    heads = [name for name in TASK_HEADS.get(model.task or "", ()) if name in model.params]
    return LNTuningConfig(modules_to_save=heads or None)


def _estimate(
    model: PretrainedModel, place: Slice, method: str, sizes: dict[str, int], rows: int, length: int
) -> int | None:
    """What `estimate_memory` says, where it follows such a step."""
    if method == "lora" and model.options.scan_layers:
        return None
    if model.options.attention == "auto" and _is_own(model, "attention"):
        kernel = find_kernel(place.chip.platform, model.settings, jnp.dtype(model.dtype))
        model = replace(model, options=replace(model.options, attention=kernel))
    try:
        found = estimate_memory(
            model, method, config=_targets(model), batch_size=rows, length=length, mesh=sizes
        )
    except (ConfigError, ModelError):
        return None
    return found.total


def _is_hopeless(model: PretrainedModel, method: str, sizes: dict[str, int], place: Slice) -> bool:
    """Whether weights and optimizer alone are too large, whatever the rows."""
    shards = sizes.get("fsdp", 1) * sizes.get("tensor", 1)
    held = total_bytes(model.params)
    if method == "full":
        held = 7 * held if model.dtype == "bfloat16" else 3 * held
    return held // shards > place.chip.memory
