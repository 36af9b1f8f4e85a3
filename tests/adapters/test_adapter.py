"""Round trips of adapter directories: bits, bytes on disk, containers, dtypes, shardings."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

import lntune_jax as lnt
from lntune_jax.adapters.store import load_adapter, restore_adapter, save_adapter
from lntune_jax.errors import AdapterError
from tests.support.adapters import CONFIG, assert_same_bits, make_params, tune
from tests.support.devices import run_on_devices
from tests.support.paths import ROOT


def count_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def test_importing_the_library_does_not_import_orbax() -> None:
    code = "import sys, lntune_jax.training.checkpoints; print('orbax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_round_trip_keeps_every_bit_and_the_order(tmp_path: Path) -> None:
    special = [-0.0, 1e-45, -1e-40, 3.4e38, 1 / 3, 0.0, -1.0, 1e-38]
    params = make_params()
    trainable = tune(params)
    trainable["layers.1.norm.scale"] = np.array(special, np.float32)
    path = save_adapter(tmp_path / "a", trainable, CONFIG, base=params)
    assert path == tmp_path / "a"
    adapter = load_adapter(path)
    assert adapter.config == CONFIG
    assert list(adapter.trainable) == list(trainable)
    for name, value in adapter.trainable.items():
        assert_same_bits(value, trainable[name])
        assert value.flags.writeable


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_round_trip_in_the_bases_own_dtype(tmp_path: Path, dtype: Any) -> None:
    config = lnt.LNTuningConfig(param_dtype=None)
    params = make_params(dtype=dtype)
    trainable = tune(params, config)
    trainable["layers.0.norm.bias"] = np.full(8, -0.0, dtype)
    save_adapter(tmp_path / "a", trainable, config, base=params)
    for name, value in load_adapter(tmp_path / "a").trainable.items():
        assert_same_bits(value, trainable[name].astype(dtype))
    restored = restore_adapter(tmp_path / "a", params)
    assert_same_bits(restored["layers"][0]["norm"]["bias"], trainable["layers.0.norm.bias"])


def test_the_frozen_half_serves_as_base(tmp_path: Path) -> None:
    params = make_params()
    _, frozen = lnt.partition_params(params, CONFIG)
    save_adapter(tmp_path / "a", tune(params), CONFIG, base=params)
    save_adapter(tmp_path / "b", tune(params), CONFIG, base=frozen)
    texts = [(tmp_path / name / "lntune.json").read_text() for name in "ab"]
    bases = [text[text.index('"base"') : text.index('"norms"')] for text in texts]
    assert bases[0] == bases[1]
    restore_adapter(tmp_path / "b", params)


def test_nnx_and_equinox_trees(tmp_path: Path) -> None:
    eqx = pytest.importorskip("equinox")

    class Nnx(nnx.Module):
        def __init__(self) -> None:
            self.ln = nnx.LayerNorm(4, rngs=nnx.Rngs(0))
            self.fc = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

    class Equinox(eqx.Module):
        ln: Any
        fc: Any
        activation: Any = jax.nn.relu

        def __init__(self) -> None:
            self.ln = eqx.nn.LayerNorm(4)
            self.fc = eqx.nn.Linear(4, 4, key=jax.random.key(0))

    for index, params in enumerate((nnx.state(Nnx()), Equinox())):
        trainable, frozen = lnt.partition_params(params, CONFIG)
        tuned = {name: leaf * 3 for name, leaf in trainable.items()}
        path = save_adapter(tmp_path / str(index), tuned, CONFIG, base=frozen)
        restored = restore_adapter(path, params)
        assert jax.tree.structure(restored) == jax.tree.structure(params)
        again, _ = lnt.partition_params(restored, CONFIG)
        for name, leaf in tuned.items():
            assert_same_bits(again[name], leaf)


def test_paths_may_be_relative_strings_or_under_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = make_params()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert save_adapter("deep/er/a", tune(params), CONFIG, base=params) == tmp_path / "deep/er/a"
    assert save_adapter("~/b", tune(params), CONFIG, base=params) == tmp_path / "home/b"
    load_adapter("~/b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "home"]


def test_no_base_weights_are_saved(tmp_path: Path) -> None:
    params = make_params(layers=6, width=512)
    trainable = tune(params)
    save_adapter(tmp_path / "a", trainable, CONFIG, base=params)
    raw = sum(value.nbytes for value in trainable.values())
    base = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    written = count_bytes(tmp_path / "a")
    assert written < raw * 1.05 + 64 * 1024
    assert written * 50 < base
    kernel = params["layers"][0]["mlp"]["kernel"]
    content = b"".join(p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert kernel[0].tobytes() not in content


def test_restore_keeps_frozen_objects_and_mutates_nothing(tmp_path: Path) -> None:
    params = make_params()
    before = jax.tree.map(np.copy, params)
    save_adapter(tmp_path / "a", tune(params), CONFIG, base=params)
    restored = restore_adapter(tmp_path / "a", params)
    assert restored["embed"]["table"] is params["embed"]["table"]
    assert restored["layers"][1]["mlp"]["kernel"] is params["layers"][1]["mlp"]["kernel"]
    assert isinstance(restored["layers"][0]["norm"]["scale"], np.ndarray)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    np.testing.assert_array_equal(
        restored["layers"][0]["norm"]["scale"], tune(params)["layers.0.norm.scale"]
    )


def test_restore_into_other_containers(tmp_path: Path) -> None:
    params = make_params()
    trainable = tune(params)
    save_adapter(tmp_path / "a", trainable, CONFIG, base=params)
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    flat = {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in leaves}
    restored = restore_adapter(tmp_path / "a", flat)
    assert list(restored) == list(flat)
    np.testing.assert_array_equal(restored["layers.1.norm.bias"], trainable["layers.1.norm.bias"])
    nested = {"params": {**params, "layers": {str(i): p for i, p in enumerate(params["layers"])}}}
    frozen_dict = restore_adapter(tmp_path / "a", flax.core.freeze(nested))
    assert isinstance(frozen_dict, flax.core.FrozenDict)
    state = nnx.State(jax.tree.map(lambda x: nnx.Param(jnp.asarray(x)), nested["params"]))
    restored = restore_adapter(tmp_path / "a", state)
    assert type(restored) is type(state)
    found = restored["layers"]["1"]["norm"]["scale"]
    assert isinstance(found, nnx.Param)
    np.testing.assert_array_equal(found[...], trainable["layers.1.norm.scale"])


def test_restore_into_another_dtype(tmp_path: Path) -> None:
    params = make_params()
    trainable = tune(params)
    save_adapter(tmp_path / "a", trainable, CONFIG, base=params)
    coarse = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    scale = restore_adapter(tmp_path / "a", coarse)["layers"][0]["norm"]["scale"]
    assert isinstance(scale, jax.Array)
    assert_same_bits(scale, trainable["layers.0.norm.scale"].astype(ml_dtypes.bfloat16))
    kept = restore_adapter(tmp_path / "a", coarse, cast=False)["layers"][0]["norm"]["scale"]
    assert_same_bits(kept, trainable["layers.0.norm.scale"])
    save_adapter(tmp_path / "b", tune(coarse), CONFIG, base=coarse)
    restore_adapter(tmp_path / "b", params)


def test_restore_into_an_abstract_tree(tmp_path: Path) -> None:
    params = make_params()
    save_adapter(tmp_path / "a", tune(params), CONFIG, base=params)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), params
    )
    restored = restore_adapter(tmp_path / "a", abstract)
    assert restored["layers"][0]["norm"]["scale"].sharding == sharding
    assert restored["embed"]["table"] is abstract["embed"]["table"]
    abstract["embed"]["table"] = jax.ShapeDtypeStruct((33, 8), np.float32)
    with pytest.raises(AdapterError, match=r"embed\.table' \[32,8\]; found .*\[33,8\]"):
        restore_adapter(tmp_path / "a", abstract)


def test_merging_and_taking_out_gives_the_base_back(tmp_path: Path) -> None:
    for dtype in (np.float32, ml_dtypes.bfloat16):
        params = make_params(dtype=dtype)
        start, _ = lnt.partition_params(params, CONFIG)
        save_adapter(tmp_path / "a", tune(params), CONFIG, base=params, overwrite=True)
        save_adapter(tmp_path / "zero", start, CONFIG, base=params, overwrite=True)
        merged = restore_adapter(tmp_path / "a", params)
        taken_out = restore_adapter(tmp_path / "zero", merged)
        jax.tree.map(assert_same_bits, taken_out, params)


def test_modules_to_save_norms_and_unknown_config_fields(tmp_path: Path) -> None:
    params = {**make_params(), "odd": {"w": np.ones(8, np.float32)}}
    params["score"] = {"kernel": np.ones((8, 3), np.float32), "bias": np.zeros(3, np.float32)}
    config = lnt.LNTuningConfig.from_dict({"modules_to_save": ["score"], "auto_mapping": None})
    norms = ["odd", "layers.0.norm"]
    trainable, _ = lnt.partition_params(params, config, norms=norms)
    assert "odd.w" in trainable
    trainable["odd.w"] = np.full(8, 7, np.float32)
    save_adapter(tmp_path / "a", trainable, config, base=params, norms=norms)
    assert load_adapter(tmp_path / "a").config == config
    fresh = {**params, "score": jax.tree.map(np.zeros_like, params["score"])}
    restored = restore_adapter(tmp_path / "a", fresh)
    assert restored["odd"]["w"][0] == 7
    assert restored["score"]["kernel"].sum() == 24


def test_unusual_leaf_paths_round_trip_inside_the_directory(tmp_path: Path) -> None:
    keys = ["..", ".", "é漢字 😀", "a b", "_METADATA", "x" * 300, 'quote"\\', "new\nline", "0", "c"]
    params = {key: {"norm": {"scale": np.ones(4, np.float32)}} for key in keys}
    params |= {"up": {"..": {"..": {"ln": {"scale": np.ones(4, np.float32)}}}}}
    trainable = tune(params)
    save_adapter(tmp_path / "a", trainable, CONFIG, base=params)
    assert list(load_adapter(tmp_path / "a").trainable) == list(trainable)
    restore_adapter(tmp_path / "a", params)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("key", ["\ud800", "x" * 5000])
def test_paths_that_cannot_be_stored_are_refused(tmp_path: Path, key: str) -> None:
    params = {key: {"norm": {"scale": np.ones(4, np.float32)}}}
    with pytest.raises(AdapterError, match="no path that can be stored"):
        save_adapter(tmp_path / "a", tune(params), CONFIG, base=params)
    assert list(tmp_path.iterdir()) == []


def test_saving_inside_a_running_event_loop(tmp_path: Path) -> None:
    async def save() -> None:
        params = make_params()
        save_adapter(tmp_path / "a", tune(params), CONFIG, base=params)
        load_adapter(tmp_path / "a")

    asyncio.run(save())


_SHARDED = """
import sys, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P, Mesh
from tests.support.adapters import CONFIG, make_params, tune
from lntune_jax.adapters.store import save_adapter, restore_adapter
params, trainable, where = make_params(), tune(make_params()), sys.argv[1]
def shard(rows, columns):
    devices = np.array(jax.devices()[: rows * columns]).reshape(rows, columns)
    mesh = Mesh(devices, ("a", "b"))
    spec = lambda x: NamedSharding(mesh, P("a", "b") if x.ndim == 2 else P("a"))
    return jax.tree.map(lambda x: jax.device_put(x, spec(x)), params), mesh
sharded, mesh = shard(2, 2)
restored = restore_adapter(where + "/one", sharded)
leaf = restored["layers"][0]["norm"]["scale"]
assert leaf.sharding == NamedSharding(mesh, P("a")), leaf.sharding
assert np.array_equal(leaf, trainable["layers.0.norm.scale"])
sharded, mesh = shard(4, 2)
trainable = {k: jax.device_put(v, NamedSharding(mesh, P("b"))) for k, v in trainable.items()}
save_adapter(where + "/many", trainable, CONFIG, base=sharded)
print("done")
"""


def test_one_device_to_many_and_back(tmp_path: Path) -> None:
    params = make_params()
    trainable = tune(params)
    save_adapter(tmp_path / "one", trainable, CONFIG, base=params)
    run_on_devices(_SHARDED, 8, tmp_path)
    restored = restore_adapter(tmp_path / "many", params)
    np.testing.assert_array_equal(
        restored["layers"][1]["norm"]["scale"], trainable["layers.1.norm.scale"]
    )


def test_every_bit_of_a_value_survives(tmp_path: Path) -> None:
    """Zeros of both signs, and numbers too small to be normal: nothing is flushed or compared."""
    for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16):
        tiny = np.finfo(np.float32).smallest_subnormal if dtype == np.float32 else 0
        values = [[-0.0] * 8, [0.0] * 8, [0.0, -0.0, 1, -1, tiny, -tiny, 3, 0.1]]
        for number, numbers in enumerate(values):
            params = make_params(dtype=dtype)
            config = CONFIG.replace(param_dtype=None)
            leaf = np.array(numbers, dtype)
            if number == 2:
                leaf.view(np.uint8)[:2] = 1  # the smallest bits, whatever the dtype
            trainable = dict.fromkeys(tune(params, config), leaf)
            path = save_adapter(tmp_path / "a", trainable, config, base=params, overwrite=True)
            for value in load_adapter(path).trainable.values():
                assert_same_bits(value, leaf)
            restored = restore_adapter(path, params)
            assert_same_bits(restored["layers"][1]["norm"]["bias"], leaf)


def test_an_adapter_says_what_it_is_for(tmp_path: Path) -> None:
    params = make_params()
    task = {
        "name": "text-classification",
        "labels": ["no", "yes é"],
        "pooling": "mean",
        "prompt": {"form": "{question}\n"},
        "base_model": "org/model",
    }
    path = save_adapter(tmp_path / "a", tune(params), CONFIG, base=params, task=task)
    adapter = load_adapter(path)
    assert adapter.task == task
    trainable, config = adapter
    assert trainable is adapter.trainable
    assert config == CONFIG
    path = save_adapter(tmp_path / "b", tune(params), CONFIG, base=params)
    assert load_adapter(path).task is None
    with pytest.raises(AdapterError, match=r"trained on org/model\) was trained on another base"):
        restore_adapter(tmp_path / "a", make_params(seed=1))


@pytest.mark.parametrize(
    "task", [5, ["labels"], {"f": len}, {"x": np.ones(2)}, {"x": float("nan")}, {1j: 2}]
)
def test_a_task_that_is_no_json_is_refused(tmp_path: Path, task: Any) -> None:
    params = make_params()
    with pytest.raises(AdapterError, match="task must be a dict of JSON values"):
        save_adapter(tmp_path / "a", tune(params), CONFIG, base=params, task=task)
    assert list(tmp_path.iterdir()) == []


def test_a_person_can_read_the_metadata(tmp_path: Path) -> None:
    """Plain JSON: a line for each leaf, each norm and each leaf of the base."""
    params = make_params(layers=12)
    path = save_adapter(tmp_path / "a", tune(params), CONFIG, base=params, task={"labels": ["a"]})
    text = (path / "lntune.json").read_text()
    fields = json.loads(text)
    assert list(fields)[:4] == ["format", "format_version", "library_version", "task"]
    assert fields["norms"] == sorted(f"layers.{i}.norm" for i in range(12))
    assert fields["leaves"]["layers.3.norm.bias"].keys() == {"shape", "dtype", "sha256"}
    lines = text.splitlines()
    for record in (*fields["leaves"], *fields["base"]["leaves"]):
        assert sum(f'"{record}": ' in line for line in lines) == 1
    assert max(map(len, lines)) < 200


_SAVE = """
import sys
import numpy as np
import lntune_jax as lnt
params = {
    "block": {
        name: {"w": np.ones(4, np.float32), "b": np.zeros(4, np.float32)} for name in "uvxyz"
    },
    "fc": {"kernel": np.arange(16, dtype=np.float32).reshape(4, 4)},
    "head": {"kernel": np.ones((4, 2), np.float32), "bias": np.zeros(2, np.float32)},
}
config = lnt.LNTuningConfig(modules_to_save={"head"}, target_modules={"u", "v", "x", "y", "z"})
norms = frozenset(f"block.{name}" for name in "uvxyz")
trainable, frozen = lnt.partition_params(params, config, norms=norms)
lnt.save_adapter(sys.argv[1], trainable, config, base=params, norms=norms)
selection = lnt.select(params, config, norms=norms)
lnt.save_adapter(sys.argv[2], trainable, selection, base=params)
bank = lnt.bank.make_bank(params, {"a": lnt.Adapter(trainable, config)}, norms=norms, on_host=True)
lnt.bank.save_bank(sys.argv[3], bank, base=params)
"""


def test_the_same_call_gives_the_same_bytes_under_any_hash_seed(tmp_path: Path) -> None:
    texts: dict[str, set[bytes]] = {"config": set(), "selection": set(), "bank": set()}
    for seed in ("0", "1", "2"):
        paths = {way: tmp_path / f"{way}-{seed}" for way in texts}
        subprocess.run(
            [sys.executable, "-c", _SAVE, *map(str, paths.values())],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            check=True,
            timeout=300,
        )
        for way, path in paths.items():
            files = [path / "lntune.json", *path.glob("*_config.json")]
            texts[way].add(b"".join(file.read_bytes() for file in files))
    assert {way: len(found) for way, found in texts.items()} == dict.fromkeys(texts, 1)


def test_a_module_saved_by_its_types_is_restored_into_its_state(tmp_path: Path) -> None:
    """`final` says nothing: NNX's types told the norm when it was saved, the file does later."""

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.embed = nnx.Linear(4, 4, rngs=rngs)
            self.final = nnx.LayerNorm(4, rngs=rngs)
            self.batch = nnx.BatchNorm(4, rngs=rngs)

    model = Model(nnx.Rngs(0))
    for number, chosen in enumerate((CONFIG, lnt.select(model, CONFIG))):
        trainable, _ = lnt.partition_params(model, CONFIG)
        assert set(trainable) == {"final.scale", "final.bias"}
        tuned = {path: leaf + 2 for path, leaf in trainable.items()}
        path = save_adapter(tmp_path / str(number), tuned, chosen, base=model)
        for tree in (nnx.state(model), nnx.to_pure_dict(nnx.state(model))):
            found = nnx.to_pure_dict(nnx.state(restore_adapter(path, tree)))
            assert found["final"]["scale"].tolist() == [3.0] * 4
            assert found["final"]["bias"].tolist() == [2.0] * 4


def test_an_adapter_of_another_kind_of_model_is_told_in_its_words(tmp_path: Path) -> None:
    layers = range(6)
    norm = {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}
    bert = {
        "bert": {
            f"encoder.layer.{i}.{part}.LayerNorm": norm
            for i in layers
            for part in ("attention.output", "output")
        },
        "kernel": np.ones((2, 2), np.float32),
    }
    llama = {
        "model": {f"layers.{i}.input_layernorm": {"scale": np.ones(4, np.float32)} for i in layers},
        "kernel": np.ones((2, 2), np.float32),
    }
    config = lnt.LNTuningConfig(base_model_name_or_path="google-bert/bert-base-uncased")
    path = save_adapter(tmp_path / "a", tune(bert, config), config, base=bert)
    with pytest.raises(AdapterError) as raised:
        restore_adapter(path, llama)
    text = str(raised.value)
    assert "was trained on another model ('google-bert/bert-base-uncased')" in text
    assert "'bert.encoder.layer.0.attention.output.LayerNorm.bias'" in text
    assert "params has 'model.layers.0.input_layernorm." in text
    assert len(text) < 1000
