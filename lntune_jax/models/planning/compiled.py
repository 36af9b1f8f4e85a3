"""One step through the compiler of a chip that is not there, in a process of its own.

A compiler for TPUs reads environment variables before it starts, may end the process where it
fails, and must not get between a user and the devices that are there. So it runs in a child:
`compile_apart` sends it a request, and `python -m lntune_jax.models.planning.compiled` answers.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lntune_jax.errors import ModelError, ShardingWarning
from lntune_jax.messages import shorten

from .chips import CHIPS, Slice
from .collectives import KINDS, list_collectives
from .program import count_bytes, count_flops, find_square

_GIB = 2**30
# Where no metadata server says which TPU this is, and none is looked for.
_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # beside others, which may hold the TPU of this machine
}
_QUIET = {
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TRANSFORMERS_VERBOSITY": "error",
}
_TOO_LARGE = re.compile(r"total memory required[^(]*\(([\d.]+)([KMGT])\).*?\(([\d.]+)([KMGT])\)")
# Programs within the program: Pallas' kernels, and cuDNN's attention.
_KERNEL = re.compile(r'custom_call_target="(tpu_custom_call|__cudnn[^"]*|__gpu\$xla[^"]*)"')
_UNITS = {"K": 2**10, "M": 2**20, "G": _GIB, "T": 2**40}
_ANSWER = "answer.json"


@dataclass(frozen=True)
class Sent:
    """What a device sends of one kind in a step.

    Attributes:
        count: operations, those of loops as often as they run.
        result: bytes of their results on a device.
        sent: bytes that a device sends, in a ring of those that take part.
    """

    count: int
    result: int
    sent: int


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a step on each device; `None` is what it does not say.

    Attributes:
        memory: bytes that a device may use.
        needed: bytes at the peak: arguments, temporaries, and outputs that replace no argument.
        arguments: bytes of weights, optimizer state and batch.
        temporaries: bytes of all else.
        flops: operations of matrix products in a step.
        sent: what is sent to other devices, by kind.
        square: the largest array of length x length: its type and shape, and its bytes.
        has_no_square: whether such arrays were looked for, and there are none.
        seconds: that compiling took.
        notes: what could not be told, and why.
    """

    memory: int
    needed: int
    arguments: int | None = None
    temporaries: int | None = None
    flops: int | None = None
    sent: dict[str, Sent] | None = None
    square: tuple[str, int] | None = None
    has_no_square: bool = False
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the step runs in the memory of its devices."""
        return self.arguments is not None and self.needed <= self.memory


@dataclass(frozen=True)
class Request:
    """A step to compile; all of it plain JSON.

    Attributes:
        config: the dict of a config.json.
        options: how the model is made: those of `from_config`, and its task and labels.
        method: "ln", "lora" or "full".
        chip: the name of a row of `chips`.
        count: of chips.
        mesh: sizes of the axes.
        batch: rows of all devices together.
        length: tokens in a row.
        rank: of LoRA's factors.
    """

    config: dict[str, Any]
    options: dict[str, Any]
    method: str
    chip: str
    count: int
    mesh: dict[str, int]
    batch: int
    length: int
    rank: int = 8

    @property
    def place(self) -> Slice:
        """The chips."""
        return Slice(CHIPS[self.chip], self.count)


def check_compiler(place: Slice) -> None:
    """Check that what compiles for a slice is installed.

    Raises:
        ModelError: it is not; says what to install.
    """
    if place.chip.platform == "tpu":
        if importlib.util.find_spec("libtpu") is None:
            raise ModelError(
                f"planning for {place} needs the compiler for TPUs, the package libtpu: pip "
                "install 'lntune-jax[plan]'. No TPU is needed; there is none for other systems "
                "than Linux"
            )
    elif not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (13, 12)):
        raise ModelError(
            f"planning for {place} needs JAX's plugin for CUDA: pip install 'jax[cuda13]'. No GPU "
            "is needed"
        )


def compile_apart(request: Request) -> Compiled:
    """Compile a step in a process of its own.

    Raises:
        ModelError: the step cannot be made, or the compiler fails; the message has its last words.
    """
    check_compiler(request.place)
    environment = os.environ | _QUIET | (_TPU if request.place.chip.platform == "tpu" else {})
    environment.pop("XLA_FLAGS", None)  # meant for the devices that are there
    environment["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    with tempfile.TemporaryDirectory(prefix="lntune-plan-") as folder:
        answer = Path(folder) / _ANSWER
        child = subprocess.run(
            [sys.executable, "-P", "-m", __name__, str(answer)],
            input=json.dumps(dataclasses.asdict(request)),
            capture_output=True,
            text=True,
            env=environment,
        )
        if not answer.is_file():
            words = [line for line in child.stderr.splitlines() if line.strip()]
            last = shorten(words[-1].strip(), 600) if words else f"exit code {child.returncode}"
            raise ModelError(f"the compiler for {request.place} ended without an answer: {last}")
        found = json.loads(answer.read_text())
    if "error" in found:
        raise ModelError(found["error"])
    return read_answer(found)


def read_answer(found: dict[str, Any]) -> Compiled:
    """Read what a process, or a file, says of a compiled step."""
    sent = found["sent"] and {kind: Sent(**each) for kind, each in found["sent"].items()}
    square = found["square"] and (found["square"][0], found["square"][1])
    return Compiled(**found | {"sent": sent, "square": square, "notes": tuple(found["notes"])})


def find_mesh(place: Slice, sizes: dict[str, int]) -> Any:
    """Give a mesh of devices that are only described."""
    import jax
    from jax.experimental import topologies

    chip = place.chip
    found = topologies.get_topology_desc(place.layout, chip.platform, **chip.options)
    if chip.platform == "cuda":
        _describe_cudnn()
    mesh = topologies.make_mesh(found, tuple(sizes.values()), tuple(sizes))
    assert mesh.axis_types == (jax.sharding.AxisType.Auto,) * len(sizes)
    return mesh


def measure(
    model: Any,
    method: str,
    mesh: Any,
    *,
    batch: int,
    length: int,
    memory: int,
    rank: int = 8,
    options: dict[str, Any] | None = None,
) -> Compiled:
    """Compile a step and read what the compiler says of it.

    Args:
        model: from `from_config`.
        method: "ln", "lora" or "full".
        mesh: of devices, or of described ones.
        batch: rows of all devices together.
        length: tokens in a row.
        memory: bytes that a device may use.
        rank: of LoRA's factors.
        options: of the compiler.
    """
    import jax

    from .steps import lower_step

    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ShardingWarning)
        lowered = lower_step(model, method, mesh, batch, length, rank=rank)
    notes = [str(each.message) for each in caught if issubclass(each.category, ShardingWarning)]
    notes = list(dict.fromkeys(notes))
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        needed = read_too_large(str(error))
        if needed is None:
            raise
        seconds = time.perf_counter() - start
        return Compiled(memory, needed, seconds=seconds, notes=tuple(notes))
    seconds = time.perf_counter() - start
    sizes = count_bytes(compiled)
    held = sizes["argument_bytes"], sizes["temporary_bytes"]
    found = Compiled(memory, sizes["peak_bytes"], *held, seconds=seconds)
    try:
        text = compiled.as_text()
    except Exception as error:  # of whatever kind the compiler's own writer raises
        reason = shorten(" ".join(str(error).split()), 120)
        notes.append(f"the compiler does not write the program down ({reason})")
        return replace(found, notes=tuple(notes))
    kernels = sorted(set(_KERNEL.findall(text)))
    if kernels:
        notes.append(
            f"operations inside of kernels ({', '.join(kernels)}) are not counted, nor what "
            "cuDNN works in"
        )
    try:
        found = replace(found, flops=count_flops(text))
    except ValueError as error:
        notes.append(f"operations are not counted: {shorten(str(error), 120)}")
    try:
        found = replace(found, sent=add_up(text, mesh.size))
    except ValueError as error:
        notes.append(f"what is sent is not counted: {shorten(str(error), 120)}")
    if length in list_sizes(model):
        notes.append(
            f"arrays of length x length are not looked for: {length} is also one of the model's "
            "own sizes"
        )
    else:
        square = find_square(text, length)
        found = replace(found, square=square, has_no_square=square is None)
    return replace(found, notes=tuple(notes))


def add_up(text: str, devices: int) -> dict[str, Sent]:
    """Add up what a program sends, by kind."""
    found = [each for each in list_collectives(text, devices) if each.group > 1]
    sums = {}
    for kind in KINDS:
        own = [each for each in found if each.kind == kind]
        if own:
            count, result = sum(each.turns for each in own), sum(each.bytes for each in own)
            sums[kind] = Sent(count, result, sum(each.sent for each in own))
    return sums


def list_sizes(model: Any) -> set[int]:
    """Give the sizes of a model's own axes: a row of such a length looks like one of them."""
    import jax

    return {size for leaf in jax.tree.leaves(model.params) for size in leaf.shape}


def read_too_large(message: str) -> int | None:
    """Read from a compiler's error how many bytes a program needs; `None` of another error.

    Example:
        >>> message = "E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        >>> message += "required for HLO temporaries (32.77G) exceeds available HBM (15.75G)."
        >>> round(read_too_large(message) / 2**30, 2)
        32.77
    """
    found = _TOO_LARGE.search(message)
    return None if found is None else round(float(found[1]) * _UNITS[found[2]])


def _describe_cudnn() -> None:
    """Say which cuDNN there would be: JAX asks the plugin when a step is traced."""
    from lntune_jax.compat import assume_cudnn

    assume_cudnn(91000)


def _answer(request: Request) -> dict[str, Any]:
    from ..model import from_config

    model = from_config(request.config, **request.options)
    place = request.place
    # There is no GPU to try things on.
    options = {"xla_gpu_autotune_level": 0} if place.chip.platform == "cuda" else None
    found = measure(
        model,
        request.method,
        find_mesh(place, request.mesh),
        batch=request.batch,
        length=request.length,
        memory=place.chip.memory,
        rank=request.rank,
        options=options,
    )
    return dataclasses.asdict(found)


def _end_with(parent: int) -> None:
    """End this process when the one that asked is gone: nobody waits for minutes of work."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _main(path: str) -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    request = Request(**json.loads(sys.stdin.read()))
    try:
        found = _answer(request)
    except Exception as error:
        words = shorten(" ".join(str(error).split()), 1200)
        found = {"error": f"the step for {request.place} does not compile: {words}"}
    target = Path(path)
    target.with_suffix(".part").write_text(json.dumps(found))
    target.with_suffix(".part").replace(target)


if __name__ == "__main__":
    _main(sys.argv[1])
