"""Banks on disk, and from directories of adapters: bit for bit, or an error that says why not."""

import json
import os
import shutil
import subprocess
import sys

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import lntune_jax as lnt
from lntune_jax import bank as banks
from lntune_jax.bank import files as bank_files
from lntune_jax.errors import AdapterError
from lntune_jax.storage.sealed import seal_json
from tests.support.banks import CONFIG, make_adapter, make_small_bank, row_of, same
from tests.support.paths import ROOT
from tests.support.small import make_params

PARAMS = make_params()


@settings(max_examples=5)
@given(
    st.lists(st.text(min_size=1).filter(lambda name: name != "base"), unique=True, max_size=4),
    st.sampled_from(["float32", "bfloat16", "float16"]),
    st.booleans(),
)
def test_there_and_back_bitwise(tmp_path_factory, names, dtype, on_host):
    path = tmp_path_factory.mktemp("banks") / "bank"
    adapters = {name: make_adapter(PARAMS, seed) for seed, name in enumerate(names)}
    bank = banks.make_bank(PARAMS, adapters, dtype=dtype)
    banks.save_bank(path, bank, base=PARAMS)
    found = banks.load_bank(path, PARAMS, on_host=on_host)
    assert found.names == bank.names
    assert found.on_host == on_host
    for name in bank.names:
        assert found.get_row(name) == bank.get_row(name)
        assert same(row_of(found, name), row_of(bank, name))


MAKE = """
import sys
import lntune_jax as lnt
from tests.support.banks import CONFIG
from tests.support.small import make_params

params = make_params()
leaves = lnt.partition_params(params, CONFIG).trainable
norms = frozenset({"ln_f", "layers.0.ln_1", "layers.1.ln_1"})
config = lnt.LNTuningConfig(modules_to_save={"classifier", "layers.0.up"})
some = {path: leaves[path] for path in set(leaves)}
bank = lnt.bank.make_bank(params, {"a": leaves, "b": some}, config=config, norms=norms)
bank = lnt.bank.add_adapter(bank, "mean", lnt.bank.average(bank, ["a", "b"]))
lnt.bank.save_bank(sys.argv[1], bank, base=params)
"""


def test_the_same_bank_is_the_same_text_under_every_hash_seed(tmp_path):
    texts = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        path = tmp_path / seed
        subprocess.run([sys.executable, "-c", MAKE, str(path)], check=True, env=environment)
        texts.add((path / "lntune.json").read_bytes())
    assert len(texts) == 1


def change_metadata(path, change):
    """Changes `lntune.json` of a bank, and its checksum."""
    fields = json.loads((path / "lntune.json").read_text())
    del fields["sha256"]
    change(fields)
    (path / "lntune.json").write_text(seal_json(fields))


def test_a_bank_s_directory_is_like_an_adapter_s(tmp_path):
    _, _, bank = make_small_bank()
    path = banks.save_bank(tmp_path / "bank", bank, base=PARAMS)
    assert sorted(entry.name for entry in path.iterdir()) == ["arrays", "lntune.json"]
    rows = json.loads((path / "lntune.json").read_text())["rows"]
    assert [row["name"] for row in rows["used"]] == ["base", "a", "b", "c"]


def test_a_bank_of_an_earlier_version_is_refused(tmp_path):
    _, _, bank = make_small_bank()
    path = banks.save_bank(tmp_path / "bank", bank, base=PARAMS)
    change_metadata(path, lambda fields: fields.pop("rows"))
    with pytest.raises(AdapterError, match=r"lntune\.json holds no rows .*earlier version"):
        banks.load_bank(path, PARAMS)
    (path / "bank.json").write_text("{}")
    with pytest.raises(AdapterError, match=r"bank\.json is unexpected"):
        banks.load_bank(path, PARAMS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows["used"][1].update(id=2), "two ids for one row"),
        (lambda rows: rows["used"][1].update(id=-1), "ids that are no numbers"),
        (lambda rows: rows["used"][1].update(id=True), "ids that are no numbers"),
        (lambda rows: rows["used"][1].update(id=2**40), "ids that are no numbers"),
        (lambda rows: rows["used"][1].update(id=2**20 - 1), "rows missing"),
        (lambda rows: rows["used"][1].update(name="b"), "two rows of one name"),
        (lambda rows: rows["used"][1].update(name="base"), "that of row 0"),
        (lambda rows: rows["used"][0].update(name="a"), "no row 0 for the base"),
        (lambda rows: rows["used"][0].update(id=2**20), "no row 0 for the base|row 0"),
        (lambda rows: rows["used"].clear(), "no row 0 for the base"),
        (lambda rows: rows.update(freed=[2**20 + 1]), "two ids for one row"),
        (lambda rows: rows.update(freed=["1"]), "ids that are no numbers"),
        (lambda rows: rows.update(freed=3), "cannot be read"),
        (lambda rows: rows.pop("freed"), "cannot be read: .*freed"),
        (lambda rows: rows["used"][1].pop("id"), "cannot be read: .*id"),
        (lambda rows: rows["used"][1].update(leaves="ln_f.scale"), "no list of paths"),
    ],
)
def test_lists_of_rows_that_cannot_be(change, message, tmp_path):
    _, _, bank = make_small_bank()
    path = banks.save_bank(tmp_path / "bank", bank, base=PARAMS)
    change_metadata(path, lambda fields: change(fields["rows"]))
    with pytest.raises(AdapterError, match=message):
        banks.load_bank(path, PARAMS)


def test_a_short_file_does_not_ask_for_all_memory(tmp_path):
    leaves = {"ln_f.scale": np.ones(32, "f")}
    bank = banks.make_bank(PARAMS, {str(number): leaves for number in range(200)}, on_host=True)
    for number in range(199):
        bank = banks.remove_adapter(bank, str(number), donate=True)
    path = banks.save_bank(tmp_path / "bank", bank, base=PARAMS)
    with pytest.raises(AdapterError, match=r"keeps 199 free ones .*pass capacity=201"):
        banks.load_bank(path, PARAMS)
    assert banks.load_bank(path, PARAMS, capacity=201).names == ("base", "199")


def test_free_rows_are_left_out(tmp_path):
    _, adapters, bank = make_small_bank(capacity=16)
    bank = banks.remove_adapter(bank, "a")
    path = banks.save_bank(tmp_path / "bank", bank, base=PARAMS)
    found = banks.load_bank(path, PARAMS, capacity=5)
    assert (found.names, found.capacity) == (("base", "b", "c"), 5)
    assert found.get_ids("b") == 2
    assert same(banks.get_adapter(found, "c").trainable, adapters["c"].trainable)
    assert banks.load_bank(path, PARAMS).capacity == 8


def test_saved_from_the_frozen_half_and_read_in_another_precision(tmp_path):
    _, _, bank = make_small_bank()
    frozen = banks.freeze_base(PARAMS, bank)
    path = banks.save_bank(tmp_path / "bank", bank, base=frozen)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    assert same(row_of(banks.load_bank(path, narrow), "a"), row_of(bank, "a"))


def test_another_base_is_refused(tmp_path):
    _, _, bank = make_small_bank()
    path = banks.save_bank(tmp_path / "bank", bank, base=PARAMS)
    other = make_params(seed=5)
    with pytest.raises(AdapterError, match="was made over another base than params"):
        banks.load_bank(path, other)
    tuned = lnt.merge_params(
        make_adapter(PARAMS, 1).trainable, lnt.partition_params(PARAMS, CONFIG).frozen
    )
    message = r"params is another base than the bank's: .*other values than row 0.*without an adapt"
    with pytest.raises(AdapterError, match=message):
        banks.load_bank(path, tuned)
    with pytest.raises(AdapterError, match="base is another base than the bank's"):
        banks.save_bank(tmp_path / "no", bank, base=tuned)
    with pytest.raises(AdapterError, match=r"the base lacks .*'ln_f\.bias'"):
        banks.load_bank(path, {"layers": PARAMS["layers"]})
    assert not (tmp_path / "no").exists()


def test_a_flipped_bit_is_found_or_holds_no_value(tmp_path):
    _, _, bank = make_small_bank()
    path = banks.save_bank(tmp_path / "bank", bank, base=PARAMS)
    draw = np.random.default_rng(0)
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.stat().st_size]
    assert len(files) > 3
    for file in files:
        whole = file.read_bytes()
        for place in draw.integers(0, len(whole), 3):
            broken = bytearray(whole)
            broken[place] ^= 1 << int(draw.integers(8))
            file.write_bytes(broken)
            try:
                found = banks.load_bank(path, PARAMS)
            except AdapterError:
                continue
            # A file of Orbax's, in which not every bit says something about the values.
            assert file.relative_to(path).parts[0] == "arrays"
            for leaf, expected in bank.leaves.items():
                np.testing.assert_array_equal(found.leaves[leaf][:3], expected[:3])
        file.write_bytes(whole)
    assert banks.load_bank(path, PARAMS).names == bank.names


def test_what_may_be_replaced(tmp_path):
    _, adapters, bank = make_small_bank()
    path = banks.save_bank(tmp_path / "bank", bank, base=PARAMS)
    with pytest.raises(AdapterError, match="overwrite=True to replace the bank there"):
        banks.save_bank(path, bank, base=PARAMS)
    smaller = banks.remove_adapter(bank, "a")
    banks.save_bank(path, smaller, base=PARAMS, overwrite=True)
    assert banks.load_bank(path, PARAMS).names == smaller.names
    lnt.save_adapter(tmp_path / "adapter", *adapters["a"], base=PARAMS)
    with pytest.raises(AdapterError, match="holds no bank, or what lntune_jax did not write"):
        banks.save_bank(tmp_path / "adapter", bank, base=PARAMS, overwrite=True)
    with pytest.raises(AdapterError, match="has format 'lntune_jax adapter', expected 'lntune"):
        banks.load_bank(tmp_path / "adapter", PARAMS)
    with pytest.raises(AdapterError, match="holds no adapter, or what lntune_jax did not write"):
        lnt.save_adapter(path, *adapters["a"], base=PARAMS, overwrite=True)
    with pytest.raises(AdapterError, match="has format 'lntune_jax bank', expected 'lntune_ja"):
        lnt.load_adapter(path)
    with pytest.raises(AdapterError, match="there is no bank directory"):
        banks.load_bank(tmp_path / "none", PARAMS)
    (path / "lntune.json").unlink()
    with pytest.raises(AdapterError, match="it is no bank of lntune_jax, or saving it was inte"):
        banks.load_bank(path, PARAMS)


def test_a_disk_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    _, _, bank = make_small_bank()
    path = banks.save_bank(tmp_path / "bank", bank, base=PARAMS)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bank_files, "write_arrays", fail)
    with pytest.raises(AdapterError, match="No space left on device"):
        banks.save_bank(path, banks.remove_adapter(bank, "a"), base=PARAMS, overwrite=True)
    assert banks.load_bank(path, PARAMS).names == bank.names
    assert [entry.name for entry in tmp_path.iterdir()] == ["bank"]


def test_from_directories_of_both_kinds(tmp_path):
    config = lnt.LNTuningConfig(target_modules=["ln_f"], modules_to_save=["classifier"])
    ours, peft = make_adapter(PARAMS, 1), make_adapter(PARAMS, 2, config)
    lnt.save_adapter(tmp_path / "ours", *ours, base=PARAMS)
    lnt.export_peft(tmp_path / "peft", *peft)
    paths = {"ours": tmp_path / "ours", "peft": str(tmp_path / "peft")}
    bank = banks.make_bank(PARAMS, paths)
    assert same(banks.get_adapter(bank, "ours").trainable, ours.trainable)
    assert same(banks.get_adapter(bank, "peft").trainable, peft.trainable)
    assert banks.get_adapter(bank, "ours").config == CONFIG
    bank = banks.add_adapter(banks.make_bank(PARAMS), "p", paths["peft"], params=PARAMS)
    assert same(banks.get_adapter(bank, "p").trainable, peft.trainable)
    # Strict: another base, a mixture of two, nothing at all.
    with pytest.raises(AdapterError, match="on another base than params"):
        banks.make_bank(make_params(seed=3), {"ours": paths["ours"]})
    shutil.copy(tmp_path / "peft/adapter_model.safetensors", tmp_path / "ours")
    with pytest.raises(AdapterError, match="two adapters: move one of them"):
        banks.make_bank(PARAMS, paths)
    with pytest.raises(AdapterError, match="there is no adapter directory"):
        banks.make_bank(PARAMS, {"none": tmp_path / "none"})
    with pytest.raises(AdapterError, match="params must be the base's tree"):
        banks.make_bank(tmp_path)
