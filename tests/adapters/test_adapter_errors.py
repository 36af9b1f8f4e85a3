"""Every way in which an adapter can be refused, one by one, and what the message says."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.adapters.store import load_adapter, restore_adapter, save_adapter
from lntune_jax.errors import AdapterError, ArgumentError, SelectionError
from tests.support.adapters import CONFIG, make_params, reseal, tune

SCALE = "layers.0.norm.scale"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    params = make_params()
    return save_adapter(tmp_path / "a", tune(params), CONFIG, base=params)


def refuse_save(tmp_path: Path, match: str, trainable: Any, base: Any, **options: Any) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AdapterError, match=match):
        save_adapter(tmp_path / "new", trainable, CONFIG, base=base, **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_save_refuses_other_leaves_than_the_config_selects(tmp_path: Path) -> None:
    params = make_params()
    good = tune(params)
    lacking = {name: value for name, value in good.items() if name != SCALE}
    refuse_save(tmp_path, f"missing from trainable: '{SCALE}'.*partition_params", lacking, params)
    refuse_save(tmp_path, "not selected by the config in base: 'x'", {**good, "x": 1}, params)
    wrong = {**good, SCALE: np.ones(7, np.float32)}
    refuse_save(tmp_path, rf"'{SCALE}' has shape \(7,\), expected \(8,\)", wrong, params)
    wrong = {**good, SCALE: np.ones(8, np.int32)}
    refuse_save(tmp_path, f"'{SCALE}' has dtype int32, expected a floating one", wrong, params)
    refuse_save(tmp_path, f"'{SCALE}' is a list, not an array", {**good, SCALE: [1.0]}, params)
    refuse_save(tmp_path, "must be a dict of leaf paths, not list", list(good.values()), params)
    whole = lnt.partition_params(params, CONFIG)
    refuse_save(tmp_path, r"not Partition: pass its \.trainable", whole, params)
    _, frozen = lnt.partition_params(params, CONFIG.replace(exclude_modules=["layers.0.norm"]))
    refuse_save(tmp_path, f"frozen half of another config.*{SCALE}", lacking, frozen)


def test_save_refuses_leaves_without_values(tmp_path: Path) -> None:
    params = make_params()
    good = tune(params)
    abstract = jax.ShapeDtypeStruct((8,), np.float32)
    refuse_save(tmp_path, f"'{SCALE}' is a jax.ShapeDtype", {**good, SCALE: abstract}, params)
    donated = jnp.ones(8)
    donated.delete()
    refuse_save(tmp_path, f"'{SCALE}' was donated.*is gone", {**good, SCALE: donated}, params)
    params["embed"]["table"] = jnp.ones((32, 8))
    params["embed"]["table"].delete()
    refuse_save(tmp_path, r"'embed\.table' of the base was donated", good, params)

    def save(x: Any) -> Any:
        save_adapter(tmp_path / "new", {**good, SCALE: x}, CONFIG, base=make_params())
        return x

    with pytest.raises(AdapterError, match=r"trainable is being traced, .*: call this outside"):
        jax.jit(save)(jnp.ones(8))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_save_refuses_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    params = make_params()
    trainable = tune(params)
    trainable[SCALE][3] = value
    refuse_save(
        tmp_path, rf"not finite, in '{SCALE}' \(1 of 8 values\).*diverged", trainable, params
    )


def test_save_refuses_an_existing_path_and_what_is_no_adapter(saved: Path) -> None:
    params, trainable = make_params(), tune(make_params())
    with pytest.raises(AdapterError, match="exists: pass another path, or overwrite=True"):
        save_adapter(saved, trainable, CONFIG, base=params)
    save_adapter(saved, trainable, CONFIG, base=params, overwrite=True)
    (saved / "notes.txt").write_text("mine")
    (saved / "arrays" / "thesis.txt").write_text("mine")
    with pytest.raises(AdapterError, match=r"did not write \('notes\.txt'\)"):
        save_adapter(saved, trainable, CONFIG, base=params, overwrite=True)
    (saved / "notes.txt").unlink()
    with pytest.raises(AdapterError, match=r"did not write \('arrays/thesis\.txt'\)"):
        save_adapter(saved, trainable, CONFIG, base=params, overwrite=True)
    assert (saved / "arrays" / "thesis.txt").read_text() == "mine"
    other = saved.parent / "photos"
    other.mkdir()
    save_adapter(other, trainable, CONFIG, base=params, overwrite=True)  # empty: nothing is lost
    shutil.rmtree(other)
    other.mkdir()
    (other / "cat.jpg").touch()
    with pytest.raises(AdapterError, match=r"did not write \('cat\.jpg'\)"):
        save_adapter(other, trainable, CONFIG, base=params, overwrite=True)
    with pytest.raises(AdapterError, match="is a file, and overwrite=True replaces adapters"):
        save_adapter(other / "cat.jpg", trainable, CONFIG, base=params, overwrite=True)
    with pytest.raises(AdapterError, match=r"File exists .*cat\.jpg\).*make this one"):
        save_adapter(other / "cat.jpg" / "a", trainable, CONFIG, base=params)
    assert [path.name for path in other.iterdir()] == ["cat.jpg"]


def test_a_damaged_adapter_may_be_replaced(saved: Path) -> None:
    (saved / "lntune.json").write_text("{")
    trainable = {path: leaf + 1 for path, leaf in tune(make_params()).items()}
    save_adapter(saved, trainable, CONFIG, base=make_params(), overwrite=True)
    found = load_adapter(saved).trainable
    assert found.keys() == trainable.keys()
    assert all(np.array_equal(found[path], leaf) for path, leaf in trainable.items())


@pytest.mark.parametrize("path", [3, None, "a\0b"])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(AdapterError, match="is no path of a directory"):
        load_adapter(path)


def test_load_refuses_what_is_absent_or_unfinished(saved: Path) -> None:
    with pytest.raises(AdapterError, match=r"there is no adapter directory .*nowhere"):
        load_adapter(saved.parent / "nowhere")
    with pytest.raises(AdapterError, match="is a file: pass the directory"):
        load_adapter(saved / "lntune.json")
    (saved / "lntune.json").unlink()
    with pytest.raises(AdapterError, match=r"holds no lntune\.json.*interrupted"):
        load_adapter(saved)
    (saved / "lntune.json").mkdir()
    with pytest.raises(AdapterError, match=r"cannot read .*lntune\.json"):
        load_adapter(saved)


def test_load_refuses_other_formats_and_versions(saved: Path) -> None:
    file = saved / "lntune.json"
    good = file.read_text()
    reseal(saved, lambda fields: fields.update(format_version=3, library_version="9.9"))
    with pytest.raises(AdapterError, match=r"version 3, expected 2.*'9\.9'. Install"):
        load_adapter(saved)
    for version in (True, None, "1", 1.0):
        reseal(saved, lambda fields, v=version: fields.update(format_version=v))
        with pytest.raises(AdapterError, match="has format version"):
            load_adapter(saved)
    for text in ("[]", "{}", '{"format": "other"}', "7"):
        file.write_text(text)
        with pytest.raises(AdapterError, match=r"has format .* expected 'lntune_jax adapter'"):
            load_adapter(saved)
    for text in ("", good[:200], "[" * 100_000, "\xff"):
        file.write_text(text, encoding="latin-1")
        with pytest.raises(AdapterError, match=r"lntune\.json is damaged"):
            load_adapter(saved)
    file.write_text(good.replace('"norms": [', '"norms":  ['))
    with pytest.raises(AdapterError, match="wrong checksum: it was changed"):
        load_adapter(saved)
    file.write_text(good)
    reseal(saved, lambda fields: fields.pop("files"))
    with pytest.raises(AdapterError, match=r"lacks a field of its format.*files"):
        load_adapter(saved)


def test_load_refuses_other_files_than_were_saved(saved: Path) -> None:
    config = saved / "adapter_config.json"
    good = config.read_bytes()
    config.write_bytes(good.replace(b"LN_TUNING", b"LN_TUNINH"))
    with pytest.raises(AdapterError, match=r"adapter_config\.json has a wrong checksum.*anew"):
        load_adapter(saved)
    config.write_bytes(good[:-3])
    with pytest.raises(AdapterError, match=r"_config\.json has another size \(.* bytes expec"):
        load_adapter(saved)
    config.unlink()
    with pytest.raises(AdapterError, match=r"adapter_config\.json is missing"):
        load_adapter(saved)
    config.write_bytes(good)
    extra = saved / "arrays" / "extra"
    extra.symlink_to(saved / "nowhere")
    with pytest.raises(AdapterError, match=r"arrays/extra is unexpected.*move files"):
        load_adapter(saved)
    extra.unlink()
    shutil.rmtree(saved / "arrays")
    with pytest.raises(AdapterError, match=r"/arrays: it holds no arrays"):
        load_adapter(saved)


def test_load_refuses_leaves_that_are_not_as_recorded(saved: Path) -> None:
    good = (saved / "lntune.json").read_text()
    for field, value in (("shape", [9]), ("dtype", "float16"), ("sha256", "0" * 64)):
        reseal(saved, lambda fields, f=field, v=value: fields["leaves"][SCALE].update({f: v}))
        with pytest.raises(AdapterError, match=f"'{SCALE}'.* has {field} .*, expected"):
            load_adapter(saved)
        (saved / "lntune.json").write_text(good)
    reseal(saved, lambda fields: fields["leaves"].update(other=fields["leaves"][SCALE]))
    with pytest.raises(AdapterError, match=r"cannot read .*arrays: it holds"):
        load_adapter(saved)
    (saved / "lntune.json").write_text(good)
    reseal(saved, lambda fields: fields["leaves"].pop(SCALE))
    with pytest.raises(AdapterError, match=r"cannot read .*arrays: it holds"):
        load_adapter(saved)


@pytest.mark.parametrize("content", [b"", b"{}", b"\0" * 200])
def test_load_reports_arrays_that_cannot_be_read(saved: Path, content: bytes) -> None:
    (saved / "arrays" / "manifest.ocdbt").write_bytes(content)
    with pytest.raises(AdapterError, match=r"cannot read .*arrays: .*damaged: copy it anew"):
        load_adapter(saved)


def test_restore_refuses_a_tree_that_does_not_fit(saved: Path) -> None:
    def refuse(match: str, params: Any) -> None:
        with pytest.raises(AdapterError, match=match):
            restore_adapter(saved, params)

    refuse(r"params lacks 'layers\.1\.norm\.bias', 'layers\.1\.norm\.scale'", make_params(layers=1))
    refuse(r"other frozen leaves.*'layers\.2\.norm\.bias'", make_params(layers=3))
    refuse(rf"'{SCALE}' has shape \(16,\) in params, expected \(8,\)", make_params(width=16))
    params = make_params()
    params["layers"][0]["norm"]["scale"] = np.ones(8, np.int8)
    refuse(f"'{SCALE}' has dtype int8 in params, expected a floating one", params)
    params["layers"][0]["norm"]["scale"] = "text"
    refuse(f"'{SCALE}' is a str in params", params)
    refuse("params is the frozen half", lnt.partition_params(make_params(), CONFIG).frozen)
    refuse("was trained on another model", {"nothing": np.ones(3)})


def test_restore_refuses_leaves_that_the_config_does_not_select(tmp_path: Path) -> None:
    params = {"block": {"norm": {"scale": np.ones(4, np.float32)}}}
    config = lnt.LNTuningConfig(target_modules=["norm"])
    path = save_adapter(tmp_path / "a", tune(params, config), config, base=params)
    hidden = {"block": {"norm": {"scale": np.ones(4, np.float32), "mean": np.ones(4)}}}
    with pytest.raises(AdapterError, match="does not fit params"):
        restore_adapter(path, hidden)


def test_restore_refuses_another_base(saved: Path) -> None:
    with pytest.raises(AdapterError, match=r"another base.*values of 'embed\.table' differ"):
        restore_adapter(saved, make_params(seed=1))
    params = make_params()
    params["layers"][0]["mlp"]["gate"] = np.ones((8, 32), np.float32)
    with pytest.raises(AdapterError, match=r"found 'layers\.0\.mlp\.gate' \[8,32\].*merge_par"):
        restore_adapter(saved, params)
    config = CONFIG.replace(base_model_name_or_path="org/model")
    params = make_params()
    save_adapter(saved, tune(params), config, base=params, overwrite=True)
    with pytest.raises(AdapterError, match=r"\(trained on org/model\) was trained on another"):
        restore_adapter(saved, make_params(seed=1))


def test_restore_refuses_values_too_large_for_the_base(tmp_path: Path) -> None:
    params = make_params(dtype=np.float16)
    trainable = {name: value * 0 + 1e6 for name, value in tune(params).items()}
    path = save_adapter(tmp_path / "a", trainable, CONFIG, base=params)
    with pytest.raises(AdapterError, match=r"too large for float16.*cast=False"):
        restore_adapter(path, params)
    restore_adapter(path, params, cast=False)


def test_restore_refuses_a_dtype_that_jax_has_turned_off(tmp_path: Path) -> None:
    config = CONFIG.replace(param_dtype=None)
    params = make_params(dtype=np.float64)
    path = save_adapter(tmp_path / "a", tune(params, config), config, base=params)
    on_device = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    restore_adapter(path, on_device)
    with pytest.raises(AdapterError, match="float64, which JAX has turned off"):
        restore_adapter(path, on_device, cast=False)


def test_restore_under_jit_is_refused(saved: Path) -> None:
    with pytest.raises(AdapterError, match=r"params is being traced, .*: call this outside"):
        jax.jit(lambda params: restore_adapter(saved, params))(make_params())


def test_a_config_that_selects_nothing_is_an_error_of_the_selection(tmp_path: Path) -> None:
    with pytest.raises(SelectionError):
        save_adapter(tmp_path / "a", {}, CONFIG, base={"fc": {"kernel": np.ones((2, 2))}})


def test_a_flag_is_true_or_false(saved: Path) -> None:
    """`None` would else have been taken for False."""
    with pytest.raises(ArgumentError, match="cast must be True or False, not None"):
        restore_adapter(saved, make_params(), cast=None)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("task", [{1: "one"}, {"labels": [{2: "two"}]}])
def test_a_task_that_would_come_back_changed_is_refused(tmp_path: Path, task: Any) -> None:
    params = make_params()
    with pytest.raises(AdapterError, match="a key is no text"):
        save_adapter(tmp_path / "new", tune(params), CONFIG, base=params, task=task)
    assert list(tmp_path.iterdir()) == []
