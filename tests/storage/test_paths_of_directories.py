"""A path that no directory can have is an error of ours, wherever one is given."""

import jax.numpy as jnp
import pytest

import lntune_jax as lnt


@pytest.mark.parametrize("name", ["x" * 300, "gs://bucket/adapter"])
def test_paths_that_no_directory_has(name):
    params = {"ln": {"scale": jnp.ones(4)}}
    trainable, _ = lnt.partition_params(params, lnt.LNTuningConfig())
    for run in (
        lambda: lnt.load_adapter(name),
        lambda: lnt.restore_adapter(name, params),
        lambda: lnt.save_adapter(name, trainable, lnt.LNTuningConfig(), base=params),
        lambda: lnt.load_peft(name, params),
        lambda: lnt.export_peft(name, trainable, lnt.LNTuningConfig()),
        lambda: lnt.bank.load_bank(name, params),
    ):
        with pytest.raises(lnt.errors.AdapterError, match=r"no path of a directory|is a URL"):
            run()
