"""The chips that a step can be planned for: their memory, their speed, and how a slice is laid out.

Memory is what the compiler may use, by its own messages; speeds are the vendors' figures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lntune_jax.errors import ConfigError
from lntune_jax.messages import nearest

_GIB = 2**30
# Layouts of a slice by its number of chips, as clouds offer them.
_FLAT = {
    1: "1x1",
    4: "2x2",
    8: "2x4",
    16: "4x4",
    32: "4x8",
    64: "8x8",
    128: "8x16",
    256: "16x16",
}
_CUBES = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
    1024: "8x8x16",
    2048: "8x16x16",
    4096: "16x16x16",
}


@dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Attributes:
        name: as it is called here.
        platform: of JAX, which compiles for it: "tpu" or "cuda".
        memory: bytes that a device may use.
        flops: operations a second of a device in bfloat16, at most, by the vendor.
        layouts: the compiler's name of a slice by its number of chips.
        devices: that JAX sees on each chip.
        options: of the description.
        cores: that the vendor counts on a chip in the names of its slices, where it does.
    """

    name: str
    platform: str
    memory: int
    flops: float
    layouts: dict[int, str]
    devices: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    cores: int = 1


def _tpu(name: str, gib: float, flops: float, layouts: dict[int, str], **more: Any) -> Chip:
    kind = "tpu7x" if name == "7x" else name
    named = {count: f"{kind}:{layout}" for count, layout in layouts.items()}
    return Chip(name, "tpu", int(gib * _GIB), flops, named, **more)


def _gpu(name: str, memory: int, bandwidth: int, l2: int) -> Chip:
    """An NVIDIA GPU of compute capability 9; JAX describes one device and no more."""
    described = _HOPPER.format(name=name.upper(), memory=memory, bandwidth=bandwidth, l2=l2)
    # What XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 gives a program; without it JAX takes 0.75.
    usable = int(memory * 0.95)
    options = {"target_config": described, "topology": "1x1x1"}
    return Chip(name, "cuda", usable, 989e12, {1: name}, options=options)


_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {l2} clock_rate_ghz: 1.98
  device_memory_size: {memory} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "NVIDIA {name}"
"""

_ROWS = (
    # The cores of a v4 work as one device only where this is asked for, as clouds do.
    _tpu("v4", 30.75, 275e12, _CUBES, options={"chip_config_name": "megacore"}, cores=2),
    _tpu("v5e", 15.75, 197e12, _FLAT),
    _tpu("v5p", 95.73, 459e12, _CUBES, cores=2),
    _tpu("v6e", 31.24, 918e12, _FLAT),
    # Two devices a chip, each with half of its memory and speed.
    _tpu("7x", 94.74, 2307e12 / 2, _CUBES, devices=2, cores=2),
    _gpu("h100", 85_520_809_984, 3_350_000_000_000, 52_428_800),
    _gpu("h200", 151_397_597_184, 4_800_000_000_000, 52_428_800),
)
CHIPS = {row.name: row for row in _ROWS}
_ALSO = {"tpu7x": "7x", "v7x": "7x", "v5litepod": "v5e", "v5lite": "v5e"}


@dataclass(frozen=True)
class Slice:
    """So many chips of a kind, as one machine.

    Example:
        >>> read_slice("v5e-8").layout
        'v5e:2x4'
    """

    chip: Chip
    count: int

    @property
    def layout(self) -> str:
        """What the compiler calls it."""
        return self.chip.layouts[self.count]

    @property
    def devices(self) -> int:
        """How many devices JAX sees."""
        return self.count * self.chip.devices

    def __str__(self) -> str:
        return f"{self.chip.name}-{self.count}"

    def describe(self) -> str:
        """Say what it is in words, its vendor's name too where that counts cores.

        Example:
            >>> read_slice("v5p-8").describe()
            '8 chips v5p (v5p:2x2x2; a v5p-16 in the names of clouds, which count cores)'
        """
        words = f"{self.count} chip{'s' if self.count > 1 else ''} {self.chip.name}"
        if self.chip.platform != "tpu":
            return words
        cores = self.chip.cores * self.count
        counted = f"; a {self.chip.name}-{cores} in the names of clouds, which count cores"
        return f"{words} ({self.layout}{counted if self.chip.cores > 1 else ''})"


def read_slice(text: Any) -> Slice:
    """Read the name of a slice: the chip and how many there are, as in "v5e-8".

    Raises:
        ConfigError: there is no such chip, or no slice of so many.

    Example:
        >>> read_slice("v5p-256").devices
        256
        >>> read_slice("v5e-9")
        Traceback (most recent call last):
            ...
        lntune_jax.errors.ConfigError: chips is 'v5e-9'; a v5e slice has 1, 4, 8, 16, 32, 64, 128 \
or 256 chips
    """
    known = ", ".join(CHIPS)
    if not isinstance(text, str):
        raise ConfigError(f"chips is {text!r}; expected a chip and how many, such as 'v5e-8'")
    name, _, number = text.strip().lower().rpartition("-")
    if not number.isdecimal():
        name, number = text.strip().lower(), ""
    chip = CHIPS.get(_ALSO.get(name, name))
    if chip is None:
        raise ConfigError(
            f"chips is {text!r}, of which the chip is not known{nearest(name, CHIPS)}: expected "
            f"one of {known}, and how many, such as 'v5e-8'"
        )
    counts = list(chip.layouts)
    if not number and counts != [1]:
        raise ConfigError(
            f"chips is {text!r}, which does not say how many: expected '{chip.name}-{counts[1]}', "
            "for example"
        )
    count = int(number or 1)
    if count not in chip.layouts:
        if chip.platform == "cuda":
            raise ConfigError(
                f"chips is {text!r}; of a GPU JAX describes one alone, without the network "
                f"between several: pass '{chip.name}-1'"
            )
        listed = f"{', '.join(map(str, counts[:-1]))} or {counts[-1]}"
        raise ConfigError(f"chips is {text!r}; a {chip.name} slice has {listed} chips")
    return Slice(chip, count)
