"""A trace's result as `norms=` of everything that selects."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lntune_jax as lnt
from lntune_jax.errors import SelectionError, TreeError
from lntune_jax.models import from_config, from_pretrained
from tests.support.checkpoints import REFERENCE
from tests.support.paths import ROOT
from tests.support.small import relax
from tests.support.traced import make_params, shape, standardized

CONFIG = lnt.LNTuningConfig()
X = shape(4, 8)


def apply(params, x):
    """Two layers whose leaves are called by letters, and a head."""
    for layer in params["layers"]:
        x = x + jnp.tanh(standardized(layer, x) @ layer["k"])
    return x @ params["head"]["w"]


def make_values():
    keys = iter(jax.random.split(jax.random.key(0), 3))

    def draw(*axes):
        return jax.random.normal(next(keys), axes)

    layers = [{"a": jnp.ones(8), "b": jnp.zeros(8), "k": draw(8, 8)} for _ in range(2)]
    return {"layers": layers, "head": {"w": draw(8, 2)}}


NORMS = ["layers.0.a", "layers.0.b", "layers.1.a", "layers.1.b"]


def test_every_function_takes_it(tmp_path):
    params = make_values()
    norms = lnt.discover_norms(apply, params, X)
    assert list(norms) == NORMS
    assert len(norms) == 4
    trainable, frozen = lnt.partition_params(params, CONFIG, norms=norms)
    assert list(trainable) == NORMS
    assert frozen["layers"][0]["k"] is params["layers"][0]["k"]
    labels = lnt.label_params(params, CONFIG, norms=norms)
    assert labels["layers"][1] == {"a": "trainable", "b": "trainable", "k": "frozen"}
    report = lnt.report_params(params, CONFIG, norms=norms)
    assert (report.trainable, report.total) == (32, 32 + 2 * 64 + 16)
    tx = lnt.make_optimizer(relax(optax.sgd(0.1)), CONFIG, norms=norms)
    updates, _ = tx.update(params, tx.init(params), params)
    assert float(updates["layers"][0]["a"][0]) != 0
    assert not updates["head"]["w"].any()

    trained = {name: leaf + 1 for name, leaf in trainable.items()}
    lnt.save_adapter(tmp_path / "adapter", trained, CONFIG, base=params, norms=norms)
    restored = lnt.restore_adapter(tmp_path / "adapter", make_values())
    np.testing.assert_array_equal(restored["layers"][1]["a"], 2 * np.ones(8))
    x = jnp.ones((4, 8))
    merged = apply(lnt.merge_params(trained, frozen), x)
    np.testing.assert_array_equal(apply(restored, x), merged)
    bank = lnt.bank.make_bank(params, {"one": tmp_path / "adapter"}, norms=norms)
    assert list(bank.names)[-1] == "one"


def test_patterns_choose_among_the_leaves():
    params = make_values()
    norms = lnt.discover_norms(apply, params, X)

    def select(**fields):
        config = lnt.LNTuningConfig(**fields)
        return list(lnt.partition_params(params, config, norms=norms).trainable)

    assert select(target_modules=["layers.1"]) == NORMS[2:]
    assert select(target_modules=r".*\.a") == NORMS[::2]
    assert select(exclude_modules=r"layers\.0\.b") == [NORMS[0], *NORMS[2:]]
    assert select(modules_to_save=["head"]) == ["head.w", *NORMS]
    with pytest.raises(SelectionError, match=r"no LayerNorm or RMSNorm leaf.*layers\.0\.a"):
        select(target_modules=["head"])


def test_a_leaf_may_have_any_name():
    """Names of running statistics, of quantised values, of collections."""
    params = {"mean": shape(8), "var": shape(8), "qvalue": shape(8, 8), "scale": shape(8)}

    def call(p, x):
        return standardized({"a": p["mean"], "b": p["scale"]}, x @ p["qvalue"] + p["var"])

    norms = lnt.discover_norms(call, params, X)
    assert list(lnt.partition_params(params, CONFIG, norms=norms).trainable) == ["mean", "scale"]


def test_stacked_layers_and_their_names(tmp_path):
    directory = REFERENCE / "decoders" / "qwen3"
    stacked = from_pretrained(directory, "CAUSAL_LM", scan_layers=True)
    tokens = shape(1, 5, dtype="int32")
    norms = lnt.discover_norms(stacked.apply, stacked.params, tokens)
    named = {"norms": norms, "name_map": stacked.name_map}
    trainable, _ = lnt.partition_params(stacked.params, CONFIG, **named)
    assert list(trainable) == list(norms)
    everything = lnt.LNTuningConfig(target_modules=r".*layers\.\d+\..*norm")
    names = list(lnt.partition_params(stacked.params, everything, **named).trainable)
    assert names == [name for name in norms if ".layers." in name]
    doubled = {name: 2 * leaf for name, leaf in trainable.items()}
    lnt.save_adapter(tmp_path / "adapter", doubled, CONFIG, base=stacked.params, **named)
    apart = from_pretrained(directory, "CAUSAL_LM")
    leaves, _ = lnt.load_adapter(tmp_path / "adapter")
    assert set(leaves) == set(lnt.discover_norms(apart.apply, apart.params, tokens))
    restored = lnt.restore_adapter(tmp_path / "adapter", apart.params)
    norm = restored["model"]["layers"]["1"]["input_layernorm"]["scale"]
    np.testing.assert_array_equal(norm, doubled["model.layers.input_layernorm.scale"][1])


def test_adapters_of_peft(tmp_path):
    """Under module paths that say nothing; PEFT's files hold modules, so whole ones."""
    base = {"alpha": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}, "ln": {"kernel": jnp.ones(8)}}

    def call(p, x):
        return (
            standardized({"a": p["alpha"]["scale"], "b": p["alpha"]["bias"]}, x) @ p["ln"]["kernel"]
        )

    norms = lnt.discover_norms(call, base, X)
    trainable, _ = lnt.partition_params(base, CONFIG, norms=norms)
    assert list(trainable) == ["alpha.bias", "alpha.scale"]
    moved = {name: leaf + 2 for name, leaf in trainable.items()}
    lnt.export_peft(tmp_path / "peft", moved, CONFIG, base=base, norms=norms)
    params = lnt.import_peft(tmp_path / "peft", base, norms=norms)
    np.testing.assert_array_equal(params["alpha"]["scale"], moved["alpha.scale"])
    np.testing.assert_array_equal(params["ln"]["kernel"], base["ln"]["kernel"])


def test_what_is_refused():
    with pytest.raises(TreeError, match=r"apply_fn must be a function.*dict"):
        lnt.discover_norms({}, make_params("a"), X)
    with pytest.raises(TreeError, match=r"params \(dict\) holds no array"):
        lnt.discover_norms(apply, {"name": "x"}, X)
    with pytest.raises(TreeError, match="two leaves"):
        lnt.discover_norms(apply, {"a.b": X, "a": {"b": X}}, X)


def test_without_a_norm_it_says_so():
    found = lnt.discover_norms(lambda p, x: x @ p["k"], make_params(), X)
    assert str(found) == "no norm was found\n0 leaves of LayerNorms and RMSNorms"
    with pytest.raises(SelectionError, match="nothing trains"):
        lnt.partition_params(make_params(), CONFIG, norms=found)


def test_nothing_is_compiled_and_nothing_computed(monkeypatch):
    compiled = []

    def listen(event, duration, **_):
        compiled.extend([event] if "compile" in event and "jaxpr_trace" not in event else [])

    jax.monitoring.register_event_duration_secs_listener(listen)
    model = from_config(REFERENCE / "decoders" / "gemma3_text", "CAUSAL_LM", scan_layers=True)
    compiled.clear()
    assert lnt.discover_norms(model.apply, model.params, shape(1, 5, dtype="int32"))
    values = {name: np.ones(leaf.shape, leaf.dtype) for name, leaf in make_params(*"ab").items()}
    assert lnt.discover_norms(standardized, values, np.ones((4, 8), np.float32))
    assert not compiled
    jax.jit(lambda x: x + 1.5)(np.ones(3, np.float32))
    assert compiled  # the listener does hear


def test_keywords_and_whatever_is_no_array():
    def call(params, x, *, mode, pair, key):
        assert mode == "train"
        assert pair == (2, None)
        x = x + jax.random.normal(key, x.shape)
        return {"y": standardized(params, x * pair[0]), "mode": mode, "nothing": None}

    params = make_params(*"ab") | {"activation": jnp.tanh, "name": "x"}
    keywords = {"mode": "train", "pair": (2, None), "key": jax.random.key(0)}
    assert list(lnt.discover_norms(call, params, X, **keywords)) == ["a", "b"]


def test_the_example_of_the_page(capsys):
    page = (ROOT / "docs" / "selection.md").read_text()
    section = page[page.index("## Find norms by tracing") :]
    code, printed = re.findall(r"```(?:python)?\n(.*?)```", section, re.DOTALL)[:2]
    names = {}
    exec(code, names)
    assert capsys.readouterr().out == printed
    assert list(names["trainable"]) == ["layers.a", "layers.b", "w"]
