"""Training checkpoints: bit for bit, into the same structure, and no silent repair."""

import random
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lntune_jax as lnt
from lntune_jax.errors import CheckpointError
from lntune_jax.training.checkpoints import open_checkpoints, restore_state, save_state
from tests.support.devices import run_on_devices
from tests.support.states import advance, assert_same_state, make_state


def test_a_resumed_run_continues_bit_for_bit(tmp_path: Path) -> None:
    state = make_state()
    with open_checkpoints(tmp_path / "run") as manager:
        assert restore_state(manager, state) is None
        for _ in range(3):
            state = advance(state)
            save_state(manager, state, {"seen": int(state.step), "history": [1.5, None, "x"]})
        assert manager.all_steps() == [2, 3]
    for like in (make_state(seed=1), jax.eval_shape(lambda: state)):
        with open_checkpoints(tmp_path / "run") as manager:
            restored = restore_state(manager, like)
        assert restored is not None
        assert_same_state(restored[0], state)
        assert restored[1] == {"seen": 3, "history": [1.5, None, "x"]}
        assert_same_state(advance(restored[0]), advance(state))


def test_no_extra_is_none_and_a_string_stays_one(tmp_path: Path) -> None:
    state = make_state()
    with open_checkpoints(tmp_path) as manager:
        save_state(manager, state)
        assert restore_state(manager, state)[1] is None  # type: ignore[index]
        save_state(manager, advance(state), '{"a": 1}')
        assert restore_state(manager, state)[1] == '{"a": 1}'  # type: ignore[index]


def test_states_of_other_kinds(tmp_path: Path) -> None:
    class State(NamedTuple):
        step: int
        array: Any
        scalar: Any
        empty: Any
        number: float
        keys: Any
        nothing: None = None

    state = State(
        step=5,
        array=np.arange(3, dtype=np.int8),
        scalar=np.float32(2.5),
        empty=jnp.zeros((0, 3)),
        number=0.1,
        keys=jax.random.split(jax.random.key(0, impl="rbg"), 3),
    )
    with open_checkpoints(tmp_path) as manager:
        save_state(manager, state)
        restored, _ = restore_state(manager, state)  # type: ignore[misc]
    assert (restored.step, restored.number, restored.nothing) == (5, 0.1, None)
    assert type(restored.array) is np.ndarray
    assert type(restored.scalar) is np.float32
    assert restored.empty.shape == (0, 3)
    assert restored.keys.dtype == state.keys.dtype
    np.testing.assert_array_equal(
        jax.random.key_data(restored.keys), jax.random.key_data(state.keys)
    )
    with pytest.raises(CheckpointError, match=r"'\.array' of the state is a str, not an array"):
        save_state(manager, state._replace(step=6, array="text"))


def test_saving_a_step_again_or_an_earlier_one_is_refused(tmp_path: Path) -> None:
    first = advance(make_state())
    with open_checkpoints(tmp_path) as manager:
        save_state(manager, advance(first))
        for state in (first, advance(first)):
            with pytest.raises(CheckpointError, match=r"holds step 2: .* later step"):
                save_state(manager, state)
        with pytest.raises(CheckpointError, match="extra must be a JSON value"):
            save_state(manager, advance(advance(first)), {"array": np.ones(2)})
        assert manager.all_steps() == [2]


def test_another_structure_shape_or_dtype_is_refused(tmp_path: Path) -> None:
    state = make_state()

    def refuse(match: str, like: Any) -> None:
        with pytest.raises(CheckpointError, match=match):
            restore_state(manager, like)

    with open_checkpoints(tmp_path) as manager:
        save_state(manager, state)
        restore_state(manager, state)
        sgd = lnt.TrainState.create(state.trainable, optax.sgd(0.1), rng=state.rng, ema=True)
        refuse(r"leaves saved, 6 in like_state.*not in like_state: .*opt_state.*count", sgd)
        refuse(
            r"10 leaves saved, 8 in .*not in like_state: .*\.ema\['a\.scale'\].*\.ema\['b'\]",
            lnt.TrainState(*_fields(state)[:4]),
        )
        refuse(r"\.trainable\['a\.scale'\].* is float32\[4\] in .*bfloat16", make_state(dtype="f4"))
        longer = {**state.trainable, "b": jnp.ones(4)}
        changed = lnt.TrainState(state.step, longer, *_fields(state)[2:])
        refuse(r"\.trainable\['b'\].* is float32\[4\] in like_state, float32\[3\] saved", changed)
        renamed = {"a.scale": state.trainable["a.scale"], "c": state.trainable["b"]}
        changed = lnt.TrainState(state.step, renamed, *_fields(state)[2:])
        refuse(r"not in the checkpoint: .*'c'.*not in like_state: .*'b'", changed)
        other_key = jax.random.key(0, impl="rbg")
        changed = lnt.TrainState(*_fields(state)[:3], other_key, state.ema)
        refuse(r"'\.rng' is key<rbg>\[\] in like_state, key<fry>\[\] saved", changed)


def _fields(state: lnt.TrainState) -> list[Any]:
    return [state.step, state.trainable, state.opt_state, state.rng, state.ema]


def test_flipped_bits_are_all_seen(tmp_path: Path) -> None:
    state = make_state()
    with open_checkpoints(tmp_path) as manager:
        save_state(manager, state, {"seen": 1})
    files = [file for file in sorted(tmp_path.rglob("*")) if file.is_file()]
    rng = random.Random(0)
    with open_checkpoints(tmp_path) as manager:
        for trial in range(60):
            file = files[trial % len(files)]
            good = file.read_bytes()
            damaged = bytearray(good)
            damaged[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=f"{file.name}.*damaged|is damaged"):
                restore_state(manager, state)
            file.write_bytes(good)
        assert restore_state(manager, state) is not None


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot open the checkpoint directory .*file"):
        open_checkpoints(tmp_path / "file" / "run")
    with pytest.raises(CheckpointError, match="keep must be at least 1, not 0"):
        open_checkpoints(tmp_path, keep=0)


_SHARDED = """
import sys, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from tests.support.states import make_state, advance, assert_same_state
from lntune_jax.training.checkpoints import open_checkpoints, restore_state, save_state
mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
split, whole = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())
state = jax.tree.map(lambda x: jax.device_put(x, split if x.shape == (4,) else whole), make_state())
with open_checkpoints(sys.argv[1]) as manager:
    save_state(manager, advance(state))
    restored, _ = restore_state(manager, state)
    assert restored.trainable["a.scale"].sharding == split
    assert restored.rng.sharding == whole
    assert_same_state(restored, advance(state))
print("done")
"""


def test_from_four_devices_to_one(tmp_path: Path) -> None:
    run_on_devices(_SHARDED, 8, tmp_path)
    with open_checkpoints(tmp_path) as manager:
        restored = restore_state(manager, make_state(seed=2))
    assert restored is not None
    assert int(restored[0].step) == 1
