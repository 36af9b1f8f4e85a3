"""Names of slices: what is read, and what is refused with the nearest that there is."""

import pytest

from lntune_jax.errors import ConfigError
from lntune_jax.models.planning.chips import CHIPS, read_slice


@pytest.mark.parametrize(
    ("text", "layout", "devices"),
    [
        ("v5e-8", "v5e:2x4", 8),
        (" V5P-1024 ", "v5p:8x8x16", 1024),
        ("v5litepod-16", "v5e:4x4", 16),
        ("v4-8", "v4:2x2x2", 8),
        ("tpu7x-4", "tpu7x:2x2x1", 8),
        ("v6e-256", "v6e:16x16", 256),
        ("h200", "h200", 1),
        ("H100-1", "h100", 1),
    ],
)
def test_a_slice_by_its_name(text, layout, devices):
    found = read_slice(text)
    assert (found.layout, found.devices) == (layout, devices)
    assert read_slice(str(found)) == found
    assert str(found.count) in found.describe()


def test_layouts_have_as_many_chips_as_they_say():
    for chip in CHIPS.values():
        for count, layout in chip.layouts.items():
            if chip.platform == "tpu":
                sides = [int(side) for side in layout.split(":")[1].split("x")]
                product = 1
                for side in sides:
                    product *= side
                assert product == count, layout


def test_cores_are_told_from_chips():
    assert (
        "8 chips v5p (v5p:2x2x2; a v5p-16 in the names of clouds" in read_slice("v5p-8").describe()
    )
    assert "clouds" not in read_slice("v5e-8").describe()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("v5-8", r"'v5-8', of which the chip is not known \(did you mean 'v5"),
        ("v5ee-8", r"did you mean 'v5e'"),
        ("a100", "expected one of v4, v5e, v5p, v6e, 7x, h100, h200"),
        ("v5e", "does not say how many: expected 'v5e-4'"),
        ("v5e-3", "a v5e slice has 1, 4, 8, 16, 32, 64, 128 or 256 chips"),
        ("v5e-0", "a v5e slice has"),
        ("v5p-1", "a v5p slice has 4, 8,"),
        ("h200-8", "of a GPU JAX describes one alone.*pass 'h200-1'"),
        ("", "not known"),
        ("-8", "not known"),
        (8, "expected a chip and how many"),
        (None, "expected a chip and how many"),
    ],
)
def test_what_is_no_slice_is_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        read_slice(text)
