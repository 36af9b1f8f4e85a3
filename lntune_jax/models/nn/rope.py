"""Rotary positions: how far each pair of a head's entries turns at a position.

The scalings are those of PyTorch's transformers (`modeling_rope_utils`), computed in float32 in
the same order, so that the angles agree at long positions too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


@dataclass(frozen=True)
class Rope:
    """One set of rotary positions.

    Attributes:
        kind: "default", "linear", "dynamic", "yarn", "llama3" or "longrope".
        theta: the base of the frequencies.
        width: entries of a head that turn: the first ones, where these are not all.
        positions: the context length from which the scaling starts.
        factor: how far the context is stretched.
        amplitude: what the rotated queries and keys are multiplied by.
        low_factor: for "llama3", the longest wavelength that is mixed, in contexts.
        high_factor: for "llama3", the shortest.
        fast: for "yarn", turns in a context from which a frequency stays as it is.
        slow: for "yarn", turns below which it is stretched in full.
        truncate: for "yarn", whether the bounds of the ramp between them are whole numbers.
        short: for "longrope", what stretches each pair in a context of up to `positions`.
        long: for "longrope", what does so in a longer one.
    """

    kind: str
    theta: float
    width: int
    positions: int = 0
    factor: float = 1.0
    amplitude: float = 1.0
    low_factor: float = 1.0
    high_factor: float = 1.0
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()


def rotations(
    rope: Rope, positions: Int[Array, "rows length"]
) -> tuple[Float[Array, "rows length half"], Float[Array, "rows length half"]]:
    """Give the cosines and sines of every position's angles, in float32."""
    frequencies: Array = jnp.asarray(fixed_frequencies(rope))
    if rope.kind == "dynamic":
        longest = positions.max() + 1
        stretched = _dynamic_frequencies(rope, longest.astype(jnp.float32))
        frequencies = jnp.where(longest > rope.positions, stretched, frequencies)
    if rope.kind == "longrope":
        stretched = jnp.asarray(_stretch(rope, rope.long))
        frequencies = jnp.where(positions.max() + 1 > rope.positions, stretched, frequencies)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    turns = jnp.cos(angles) * rope.amplitude, jnp.sin(angles) * rope.amplitude
    # Once for all layers: without a barrier, XLA computes them anew in each, for every head.
    return jax.lax.optimization_barrier(turns)


def rotate(
    x: Float[Array, "batch length heads width"],
    cosines: Float[Array, "rows length half"],
    sines: Float[Array, "rows length half"],
) -> Float[Array, "batch length heads width"]:
    """Turn each pair of entries (one from each half) by its angle; what has no angle stays."""
    turning = 2 * cosines.shape[-1]
    is_part = turning < x.shape[-1]
    own = x[..., :turning] if is_part else x
    first, second = jnp.split(own.astype(jnp.float32), 2, axis=-1)
    cosines, sines = cosines[:, :, None, :], sines[:, :, None, :]
    turned = [first * cosines - second * sines, second * cosines + first * sines]
    whole = jnp.concatenate(turned, axis=-1).astype(x.dtype)
    return jnp.concatenate([whole, x[..., turning:]], axis=-1) if is_part else whole


def fixed_frequencies(rope: Rope) -> Float[np.ndarray, " half"]:
    """Give the angle per position of every pair, as far as it does not depend on the input."""
    plain = np.float32(1.0) / _powers(rope)
    if rope.kind == "linear":
        return plain / np.float32(rope.factor)
    if rope.kind == "llama3":
        return _llama3_frequencies(rope, plain)
    if rope.kind == "yarn":
        return _yarn_frequencies(rope)
    if rope.kind == "longrope":
        return _stretch(rope, rope.short)
    return plain


def _stretch(rope: Rope, factors: tuple[float, ...]) -> Float[np.ndarray, " half"]:
    return np.float32(1.0) / (np.asarray(factors, np.float32) * _powers(rope))


def _powers(rope: Rope) -> Float[np.ndarray, " half"]:
    exponents = np.arange(0, rope.width, 2).astype(np.float32) / np.float32(rope.width)
    return np.float32(rope.theta) ** exponents


def _dynamic_frequencies(rope: Rope, longest: Float[Array, ""]) -> Float[Array, " half"]:
    stretch = rope.factor * longest / rope.positions - (rope.factor - 1)
    base = rope.theta * stretch ** (rope.width / (rope.width - 2))
    exponents = np.arange(0, rope.width, 2).astype(np.float32) / np.float32(rope.width)
    return 1.0 / base**exponents


def _llama3_frequencies(
    rope: Rope, plain: Float[np.ndarray, " half"]
) -> Float[np.ndarray, " half"]:
    wavelengths = np.float32(2 * math.pi) / plain
    longest, shortest = rope.positions / rope.low_factor, rope.positions / rope.high_factor
    smooth = (np.float32(rope.positions) / wavelengths - np.float32(rope.low_factor)) / np.float32(
        rope.high_factor - rope.low_factor
    )
    factor = np.float32(rope.factor)
    mixed = (np.float32(1) - smooth) * plain / factor + smooth * plain
    scaled = np.where(wavelengths > longest, plain / factor, mixed)
    return np.where(wavelengths < shortest, plain, scaled).astype(np.float32)


def _yarn_frequencies(rope: Rope) -> Float[np.ndarray, " half"]:
    powers = _powers(rope)
    low, high = (_pair_that_turns(rope, turns) for turns in (rope.fast, rope.slow))
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.width - 1)
    if low == high:
        high += 0.001  # transformers' own guard: the ramp must not divide by zero.
    pairs = np.arange(rope.width // 2, dtype=np.float32)
    ramp = np.clip((pairs - np.float32(low)) / np.float32(high - low), 0, 1)
    stretched = np.float32(1) / (np.float32(rope.factor) * powers)
    kept = np.float32(1) - ramp
    return stretched * (np.float32(1) - kept) + np.float32(1) / powers * kept


def _pair_that_turns(rope: Rope, turns: float) -> float:
    """The pair, as a real number, that turns so often within the original context."""
    ratio = math.log(rope.positions / (turns * 2 * math.pi))
    return rope.width * ratio / (2 * math.log(rope.theta))
