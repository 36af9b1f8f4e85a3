"""Two processes, one of which raises before the other waits for it: both learn of it."""

from pathlib import Path

import numpy as np
import pytest

import lntune_jax as lnt
from tests.support.adapters import make_params, tune
from tests.support.two_processes import run_two

_START = """
import contextlib, shutil
from pathlib import Path
import jax.numpy as jnp, optax
import lntune_jax as lnt
from lntune_jax.training import open_checkpoints, restore_state, save_state, finish_saves
from tests.support.adapters import CONFIG, make_params, tune
where = Path(sys.argv[3])
params, local = jax.tree.map(spread, make_params()), tune(make_params())
trainable = {name: spread(value) for name, value in local.items()}

def attempt(title, call):
    try:
        call()
        print(">", title, "done", flush=True)
    except lnt.LNTuningError as error:
        print(">", title, type(error).__name__, str(error)[:400].replace("\\n", " "), flush=True)
"""

_ADAPTERS = """
first = next(iter(trainable))
def lacking(number):
    return {k: v for k, v in trainable.items() if k != first or rank != number}
def broken(number):
    gone = jax.tree.map(jnp.asarray, dict(trainable))
    if rank == number:
        gone[first] = jnp.ones(local[first].shape)
        gone[first].delete()
    return gone
for bad in (0, 1):
    def save(leaves, path=where / "a"):
        lnt.save_adapter(path, leaves, CONFIG, base=params)
    attempt(f"lacks {bad}", lambda: save(lacking(bad)))
    attempt(f"gone {bad}", lambda: save(broken(bad)))
    attempt(f"path {bad}", lambda: save(trainable, "gs://x" if rank == bad else where / "a"))
    own = {k: np.full_like(v, np.nan) if rank == bad else v for k, v in local.items()}
    attempt(f"nan {bad}", lambda: save(own))
    attempt(f"PEFT {bad}", lambda: lnt.export_peft(where / "p", lacking(bad), CONFIG, base=params))
assert not list(where.iterdir())
lnt.save_adapter(where / "a", trainable, CONFIG, base=params)
attempt("exists", lambda: lnt.save_adapter(where / "a", trainable, CONFIG, base=params))
for bad in (0, 1):
    path = where / "nowhere" if rank == bad else where / "a"
    attempt(f"restore {bad}", lambda: lnt.restore_adapter(path, params))
    name = "./nowhere" if rank == bad else where / "a"
    attempt(f"hub {bad}", lambda: lnt.hub.from_pretrained(name, params))
attempt("base", lambda: lnt.restore_adapter(where / "a", jax.tree.map(spread, make_params(seed=1))))
leaf = lnt.restore_adapter(where / "a", params)["layers"][0]["norm"]["scale"]
for shard in leaf.addressable_shards:
    assert np.array_equal(shard.data, local["layers.0.norm.scale"][shard.index])
# One process alone may read what lies on it alone.
if rank == 1:
    lnt.restore_adapter(where / "a", make_params())
    attempt("alone", lambda: lnt.restore_adapter(where / "nowhere", make_params()))
"""


def test_adapters_and_peft(tmp_path: Path) -> None:
    first, second = run_two(_START + _ADAPTERS, [tmp_path])
    own = {
        "lacks": "AdapterError trainable does not fit base",
        "gone": "was donated",
        "path": "is a URL",
        "nan": "AdapterError trainable holds values that are not finite",
        "PEFT": "AdapterError trainable does not fit base",
        "restore": "AdapterError there is no adapter directory",
        "hub": "AdapterError './nowhere' is neither a directory nor an id",
    }
    check(first, second, own)
    assert "> exists AdapterError" in "".join(first)
    assert "process 0 of 2 could not do its part" in next(x for x in second if "exists" in x)
    for lines in (first, second):
        (base,) = (line for line in lines if line.startswith("> base"))
        assert "was trained on another base" in base
    assert "> alone AdapterError there is no adapter directory" in second[-1]
    # What two wrote, one reads.
    lnt.restore_adapter(tmp_path / "a", make_params())
    for name, value in tune(make_params()).items():
        np.testing.assert_array_equal(lnt.load_adapter(tmp_path / "a").trainable[name], value)


def check(first: list[str], second: list[str], own: dict[str, str]) -> None:
    """Each attempt: the error on the process that made it, and its words on the other."""
    for title, words in own.items():
        for bad in (0, 1):
            lines = [
                next(line for line in lines if line.startswith(f"> {title} {bad} "))
                for lines in (first, second)
            ]
            assert words in lines[bad], lines
            assert "AnotherProcessError" not in lines[bad], lines
            other = lines[1 - bad]
            assert f"AnotherProcessError process {bad} of 2 could not do its part" in other, lines
            assert words.partition("Error ")[2] in other, lines


_BANKS = """
bank = lnt.bank.make_bank(params, {"a": trainable}, on_host=True)
others = jax.tree.map(spread, make_params(seed=1))
for bad in (0, 1):
    base = make_params(seed=1) if rank == bad else make_params()
    attempt(f"base {bad}", lambda: lnt.bank.save_bank(where / "b", bank, base=base))
    path = "gs://x" if rank == bad else where / "b"
    attempt(f"path {bad}", lambda: lnt.bank.save_bank(path, bank, base=params))
assert not list(where.iterdir())
lnt.bank.save_bank(where / "b", bank, base=params)
for bad in (0, 1):
    path = where / "nowhere" if rank == bad else where / "b"
    attempt(f"load {bad}", lambda: lnt.bank.load_bank(path, params, on_host=True))
assert lnt.bank.load_bank(where / "b", params, on_host=True).names == ("base", "a")
if rank == 0:
    lnt.bank.load_bank(where / "b", make_params(), on_host=True)
"""


_EDITS = """
rows = NamedSharding(mesh, P("x"))
lnt.save_adapter(where / "a", local, CONFIG, base=make_params())
lnt.export_peft(where / "p", local, CONFIG)
def at(number, kind="a"):
    return where / "nowhere" if rank == number else where / kind
for bad in (0, 1):
    for kind in "ap":
        source = {"a": at(bad, kind)}
        attempt(f"make {bad}", lambda: lnt.bank.make_bank(params, source, sharding=rows))
    size = 3 if rank == bad else 8
    attempt(f"lay {bad}", lambda: lnt.bank.make_bank(params, sharding=rows, capacity=size))
other = {"a": {k: v + rank for k, v in local.items()}}
attempt("other", lambda: lnt.bank.make_bank(params, other, sharding=rows))
bank = lnt.bank.make_bank(params, {"a": where / "a"}, sharding=rows)
for bad in (0, 1):
    own = {k: np.full_like(v, np.nan) if rank == bad else v for k, v in local.items()}
    name = "a" if rank == bad else "b"
    attempt(f"nan {bad}", lambda: lnt.bank.add_adapter(bank, "b", own))
    attempt(f"name {bad}", lambda: lnt.bank.add_adapter(bank, name, local))
    attempt(f"path {bad}", lambda: lnt.bank.add_adapter(bank, "b", at(bad), params=params))
    attempt(f"swap {bad}", lambda: lnt.bank.replace_adapter(bank, "a", at(bad, "p"), params=params))
    gone = "x" if rank == bad else "a"
    attempt(f"remove {bad}", lambda: lnt.bank.remove_adapter(bank, gone))
    attempt(f"get {bad}", lambda: lnt.bank.get_adapter(bank, gone))
bank = lnt.bank.add_adapter(bank, "b", where / "p", params=params)
bank = lnt.bank.replace_adapter(bank, "a", {k: 2 * v for k, v in local.items()})
for name, factor in (("a", 2), ("b", 1)):
    for path, value in lnt.bank.get_adapter(bank, name).trainable.items():
        assert np.array_equal(value, factor * local[path]), (name, path)
bank = lnt.bank.remove_adapter(bank, "a")
assert bank.names == ("base", "b")
lnt.bank.save_bank(where / "b", bank, base=params)
for bad in (0, 1):
    size = 3 if rank == bad else 8
    def load(name, **options):
        return lnt.bank.load_bank(name, params, sharding=rows, **options)
    attempt(f"load {bad}", lambda: load(at(bad, "b")))
    attempt(f"size {bad}", lambda: load(where / "b", capacity=size))
bank = load(where / "b")
assert np.array_equal(lnt.bank.get_adapter(bank, "b").trainable[first], local[first])
# What lies on one process alone is its own matter.
if rank == 1:
    own = lnt.bank.make_bank(make_params(), {"a": where / "a"})
    lnt.bank.add_adapter(own, "b", where / "a", params=make_params())
    attempt("alone", lambda: lnt.bank.add_adapter(own, "b", where / "no", params=make_params()))
"""


def test_edits_of_banks(tmp_path: Path) -> None:
    first, second = run_two(_START + "first = next(iter(local))\n" + _EDITS, [tmp_path])
    own = {
        "make": "AdapterError there is no adapter directory",
        "lay": "AdapterError 3 rows cannot be laid out",
        "nan": "AdapterError the adapter 'b' holds values that are not finite",
        "name": "AdapterError the bank has an adapter 'a'",
        "path": "AdapterError there is no adapter directory",
        "swap": "AdapterError there is no adapter directory",
        "remove": "AdapterError the bank has no adapter 'x'",
        "get": "AdapterError the bank has no adapter 'x'",
        "load": "AdapterError there is no bank directory",
        "size": "AdapterError 3 rows cannot be laid out",
    }
    check(first, second, own)
    assert "> alone AdapterError there is no adapter directory" in second[-1]
    for lines in (first, second):
        (other,) = (line for line in lines if line.startswith("> other"))
        assert "the values of the bank are not the same on each process" in other


def test_banks(tmp_path: Path) -> None:
    first, second = run_two(_START + _BANKS, [tmp_path])
    own = {
        "base": "AdapterError base is another base than the bank's",
        "path": "is a URL",
        "load": "AdapterError there is no bank directory",
    }
    check(first, second, own)


_CHECKPOINTS = """
def make(step):
    leaves = {"a": copy(np.arange(4.0, dtype=np.float32)), "b": spread(np.arange(8.0))}
    state = lnt.TrainState.create(jax.tree.map(lambda x: x, leaves), optax.sgd(0.1))
    return lnt.TrainState(np.int32(step), state.trainable, state.opt_state)

for bad in (0, 1):
    attempt(f"keep {bad}", lambda: open_checkpoints(where / "run", keep=0 if rank == bad else 1))
with open_checkpoints(where / "run") as manager:
    for bad in (0, 1):
        extra = object() if rank == bad else None
        attempt(f"extra {bad}", lambda: save_state(manager, make(1), extra))
    assert manager.all_steps() == []
    save_state(manager, make(5), {"seen": 1})
    for bad in (0, 1):
        step = 9 if rank == bad else 5
        attempt(f"step {bad}", lambda: save_state(manager, make(3 if rank == bad else 7)))
        attempt(f"no {bad}", lambda: restore_state(manager, make(0), step=step))
        like = make(0)  # on both, since it has collectives
        like = (like, np.ones(3)) if rank == bad else like
        attempt(f"like {bad}", lambda: restore_state(manager, like))
    state, extra = restore_state(manager, make(0))
    assert int(state.step) == 5 and extra == {"seen": 1}
    for shard in state.trainable["b"].addressable_shards:
        assert np.array_equal(shard.data, np.arange(8.0)[shard.index])
    # The first process writes the record of the files; the second waits for it, and for its error.
    from lntune_jax.training import checkpoints
    def refuse(directory):
        raise OSError(28, "No space left on device")
    if rank == 0:
        checkpoints._write_record, kept = refuse, checkpoints._write_record
    attempt("record", lambda: save_state(manager, make(6)))
    if rank == 0:
        checkpoints._write_record = kept
    finish_saves(manager)
    assert (where / "run" / "6" / "lntune.json").is_file()
"""


def test_checkpoints(tmp_path: Path) -> None:
    first, second = run_two(_START + _CHECKPOINTS, [tmp_path])
    own = {
        "keep": "CheckpointError keep must be at least 1",
        "extra": "CheckpointError extra must be a JSON value",
        "step": "a checkpoint must be of a later step",
        "no": "has no checkpoint of step 9",
        "like": "does not fit like_state",
    }
    check(first, second, own)
    assert "No space left" in first[-1]
    assert "AnotherProcessError process 0 of 2" in second[-1]
    assert "No space left" in second[-1]


@pytest.mark.parametrize("text", ["", "ä" * 900])
def test_errors_without_words_and_with_many(text: str) -> None:
    program = f"""
from lntune_jax.errors import AnotherProcessError
from lntune_jax.storage.processes import meet, together
try:
    with together():
        if rank == 1:
            raise ValueError({text!r})
        meet()
except ValueError as error:
    print("> " + type(error).__name__, len(str(error)))
"""
    first, second = run_two(program)
    assert first[0].startswith("> AnotherProcessError")
    assert second == [f"> ValueError {len(text)}"]
