"""Orbax: the trainable half in a user's own manager; an adapter read without this library."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import lntune_jax as lnt
from tests.support.small import loss_fn, make_batch, make_params, relax
from tests.support.source_checks import PAGES, assert_same_bits, read_arrays, run_page

CONFIG = lnt.LNTuningConfig(modules_to_save=["classifier"])
TX = relax(optax.adam(1e-2))


def make_state(trainable):
    return lnt.TrainState.create(trainable, TX, rng=jax.random.key(3))


def loss_takes_no_key(params, batch, rng):
    del rng
    return loss_fn(params, batch)


def open_manager(path, *, asynchronous):
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=asynchronous)
    return ocp.CheckpointManager(path, options=options)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_parts_of_a_composite(tmp_path, asynchronous):
    """Trainable leaves and optimizer state apart, beside items of the user's own."""
    trainable, _ = lnt.partition_params(make_params(), CONFIG)
    tuned = jax.tree.map(lambda leaf: leaf + 1, trainable)
    opt_state = TX.init(tuned)
    own = {"table": np.arange(6.0)}
    items = ocp.args.Composite(
        norms=ocp.args.StandardSave(tuned),
        optimizer=ocp.args.StandardSave(opt_state),
        config=ocp.args.JsonSave(CONFIG.to_dict()),
        own=ocp.args.StandardSave(own),
    )
    with open_manager(tmp_path / "run", asynchronous=asynchronous) as manager:
        assert manager.save(7, args=items)
        manager.wait_until_finished()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, (tuned, opt_state, own))
        names = dict(zip(("norms", "optimizer", "own"), abstract, strict=True))
        wanted = {name: ocp.args.StandardRestore(tree) for name, tree in names.items()}
        found = manager.restore(7, args=ocp.args.Composite(config=ocp.args.JsonRestore(), **wanted))
    for name, saved in (("norms", tuned), ("optimizer", opt_state), ("own", own)):
        assert jax.tree.structure(found[name]) == jax.tree.structure(saved)
        assert_same_bits(read_arrays(found[name]), read_arrays(saved))
    assert lnt.LNTuningConfig.from_dict(found["config"]) == CONFIG


def test_a_whole_state_while_steps_donate_it(tmp_path):
    """An asynchronous save holds what was saved, though the next step overwrites its buffers."""
    trainable, frozen = lnt.partition_params(make_params(), CONFIG)
    step = lnt.make_train_step(loss_takes_no_key, TX, CONFIG)
    state, expected = make_state(trainable), {}
    with open_manager(tmp_path / "run", asynchronous=True) as manager:
        for _ in range(4):
            state, _ = step(state, frozen, make_batch())
            expected[int(state.step)] = read_arrays(state)
            items = ocp.args.Composite(state=ocp.args.StandardSave(state))
            assert manager.save(int(state.step), args=items)
            for _ in range(5):
                state, _ = step(state, frozen, make_batch())
        manager.wait_until_finished()
        for number, arrays in expected.items():
            target = ocp.args.Composite(state=ocp.args.StandardRestore(make_state(trainable)))
            found = manager.restore(number, args=target).state
            assert isinstance(found, lnt.TrainState)
            assert_same_bits(read_arrays(found), arrays)
    files = [file for file in (tmp_path / "run" / "1").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 64 * 1024  # no base in it


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path):
    trainable, frozen = lnt.partition_params(make_params(), CONFIG)
    step = lnt.make_train_step(loss_takes_no_key, TX, CONFIG)
    state = make_state(trainable)
    with open_manager(tmp_path / "run", asynchronous=True) as manager:
        for number in range(6):
            state, _ = step(state, frozen, make_batch(seed=number))
            if number == 2:
                manager.save(3, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))
    with open_manager(tmp_path / "run", asynchronous=False) as manager:
        assert manager.latest_step() == 3
        target = ocp.args.Composite(state=ocp.args.StandardRestore(make_state(trainable)))
        again = manager.restore(3, args=target).state
    for number in range(3, 6):
        again, _ = step(again, frozen, make_batch(seed=number))
    assert_same_bits(read_arrays(again), read_arrays(state))


def list_blocks():
    text = (PAGES / "orbax.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


READ_WITHOUT_THE_LIBRARY = """
import json, sys
sys.modules["lntune_jax"] = None  # importing it is an ImportError
import numpy as np
stored = np.load("base.npz")
params = {}
for path in stored:
    *module, name = path.split(".")
    node = params
    for key in module:
        node = node.setdefault(key, {})
    node[name] = stored[path]
BLOCK
try:
    import lntune_jax
except ImportError:
    print(json.dumps({path: np.asarray(leaf).tolist() for path, leaf in leaves.items()}))
    print(params["ln_f"]["scale"].dtype, float(params["ln_f"]["scale"][0]))
"""


def test_an_adapter_is_read_where_the_library_is_not(tmp_path):
    params = make_params()
    trainable, _ = lnt.partition_params(params, CONFIG)
    tuned = {path: leaf + 0.25 for path, leaf in trainable.items()}
    lnt.save_adapter(tmp_path / "adapter", tuned, CONFIG, base=params)
    flat = lnt.report_params(params, CONFIG).leaves
    base = dict(zip([leaf.path for leaf in flat], jax.tree.leaves(params), strict=True))
    np.savez(tmp_path / "base.npz", **base)
    done = subprocess.run(
        [sys.executable, "-c", READ_WITHOUT_THE_LIBRARY.replace("BLOCK", list_blocks()[-1])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    values, scale = done.stdout.strip().splitlines()
    found = json.loads(values)
    assert found.keys() == tuned.keys()
    for path, leaf in tuned.items():
        np.testing.assert_array_equal(np.asarray(found[path], np.float32), leaf)
    assert scale == "float32 1.25"


def test_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = make_params()
    trainable, _ = lnt.partition_params(params, lnt.LNTuningConfig())
    lnt.save_adapter("adapter", trainable, lnt.LNTuningConfig(), base=params)
    names = {"params": params, "loss_fn": loss_takes_no_key, "batch": make_batch()}
    names = run_page("orbax", names)
    assert int(names["state"].step) == names["position"] == 2
    assert Path("run/2/state").is_dir()
