"""`inspect --trace`: the norms by names beside those that a trace of the model finds."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from lntune_jax.cli.inspect import compare_by_trace
from tests.support.checkpoints import REFERENCE


def test_of_an_encoder(run, model_directory):
    code, printed, complaint = run("inspect", model_directory, "--trace")
    assert (code, complaint) == (0, "")
    assert printed.splitlines()[-1] == "trace: 10 leaves of norms, the same as by their names"
    assert "trace" not in run("inspect", model_directory)[1]


@pytest.mark.parametrize("flags", [(), ("--scan-layers",), ("--quantize", "int8")])
def test_of_a_decoder(run, flags):
    directory = REFERENCE / "decoders" / "gemma3_text"
    code, printed, complaint = run("inspect", directory, "--task", "CAUSAL_LM", "--trace", *flags)
    assert (code, complaint) == (0, "")
    assert "leaves of norms, the same as by their names" in printed.splitlines()[-1]


def test_where_they_differ():
    def apply(params, tokens, mask):
        del mask
        x = params["table"][tokens]
        x = jax.nn.standardize(x) * params["plain"]["scale"] + params["gate"]["w"]
        y = jax.nn.standardize(x) * params["ln_2"]["scale"]
        return y + jnp.tanh(x) * params["ln_1"]["scale"] + params["ln_2"]["scale"]

    def shape(*axes):
        return jax.ShapeDtypeStruct(axes, "float32")

    params = {name: {"scale": shape(8)} for name in ("ln_1", "ln_2", "plain")}
    params |= {"table": shape(5, 8), "gate": {"w": shape(8)}}
    lines = compare_by_trace(SimpleNamespace(apply=apply, params=params)).splitlines()
    assert lines == [
        "trace: ln_1.scale is a norm's by its name only",
        "trace: ln_2.scale is a norm's by its name only",
        "trace: gate.w is a norm's, but not by its name",
        "trace: plain.scale is a norm's, but not by its name",
        "trace: ambiguous: ln_2.scale is used as the scale of a layer norm, add",
        "trace: 2 leaves of norms",
    ]
