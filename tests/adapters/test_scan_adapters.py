"""Adapters of scanned models: one leaf a layer on disk, whichever form a model has."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lntune_jax as lnt
from lntune_jax.adapters.format import read_metadata
from lntune_jax.errors import AdapterError, SelectionError
from tests.support.checkpoints import assert_same
from tests.support.decoders import ARCHITECTURES
from tests.support.scanned import CLASSIFIERS, CONFIG, TOKENS, TOLERANCE, distance, load


def both(name: str):
    return load(name, False), load(name, True)


def tuned(model, seed: int = 0) -> dict[str, jax.Array]:
    """The trainable leaves, each moved at random; the same for either form of a model."""
    trainable, _ = lnt.partition_params(model.params, CONFIG, name_map=model.name_map)
    generator = np.random.default_rng(seed)
    return {
        name: leaf + jnp.asarray(generator.normal(0, 0.1, leaf.shape), leaf.dtype)
        for name, leaf in trainable.items()
    }


@pytest.mark.parametrize("name", [*ARCHITECTURES, *CLASSIFIERS])
def test_an_adapter_of_one_form_fits_the_other(name, tmp_path):
    apart, scanned = both(name)
    leaves = tuned(scanned)
    lnt.save_adapter(
        tmp_path / "scanned", leaves, CONFIG, base=scanned.params, name_map=scanned.name_map
    )
    saved = lnt.load_adapter(tmp_path / "scanned").trainable
    separate = lnt.restore_adapter(tmp_path / "scanned", apart.params)
    trainable, frozen = lnt.partition_params(separate, CONFIG)
    assert_same(dict(trainable), {path: saved[path] for path in trainable})
    # And the other way round: the files agree leaf by leaf, fingerprint included.
    lnt.save_adapter(tmp_path / "apart", trainable, CONFIG, base=frozen)
    stacked = lnt.restore_adapter(tmp_path / "apart", scanned.params, name_map=scanned.name_map)
    _, rest = lnt.partition_params(scanned.params, CONFIG, name_map=scanned.name_map)
    assert_same(stacked, lnt.merge_params(leaves, rest))
    one, other = (read_metadata(tmp_path / form) for form in ("scanned", "apart"))
    assert (one.leaves, one.base) == (other.leaves, other.base)
    logits = [
        jax.jit(model.apply)(params, TOKENS).logits
        for model, params in ((apart, separate), (scanned, stacked))
    ]
    assert distance(logits[1], logits[0]) < TOLERANCE


def test_peft_s_files_cross_too(tmp_path):
    apart, scanned = both("gemma2")
    leaves = tuned(scanned)
    path = lnt.export_peft(
        tmp_path / "peft", leaves, CONFIG, base=scanned.params, name_map=scanned.name_map
    )
    separate = lnt.import_peft(path, apart.params)
    trainable, _ = lnt.partition_params(separate, CONFIG)
    assert "model.layers.1.pre_feedforward_layernorm.scale" in trainable
    stacked = lnt.import_peft(path, scanned.params, name_map=scanned.name_map)
    _, frozen = lnt.partition_params(scanned.params, CONFIG, name_map=scanned.name_map)
    assert_same(stacked, lnt.merge_params(leaves, frozen))


def select(config, **options):
    scanned = load("qwen2", True)
    return lnt.partition_params(scanned.params, config, **options).trainable


def test_patterns_that_name_every_layer_mean_the_same(tmp_path):
    apart, scanned = both("qwen2")
    for targets in (r"model\.layers\.\d+\.input_layernorm", ["input_layernorm"]):
        config = lnt.LNTuningConfig(target_modules=targets)
        leaves = select(config, name_map=scanned.name_map)
        assert list(leaves) == ["model.layers.input_layernorm.scale"]
        path = tmp_path / str(len(targets))
        lnt.save_adapter(path, leaves, config, base=scanned.params, name_map=scanned.name_map)
        assert lnt.load_adapter(path).config.target_modules == config.target_modules
        lnt.restore_adapter(path, apart.params)
    report = lnt.report_params(scanned.params, config, name_map=scanned.name_map)
    assert report.trainable == 3 * 24
    labels = lnt.label_params(scanned.params, config, name_map=scanned.name_map)
    assert labels["model"]["layers"]["input_layernorm"]["scale"] == "trainable"


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": r".*\.layers\.1\..*norm"},
        {"target_modules": ["layers.1.input_layernorm", "norm"]},
        {"target_modules": r"(?!.*layers\.1\.).*norm"},
        {"exclude_modules": ["layers.1.input_layernorm"]},
        {"modules_to_save": ["layers.1.mlp"]},
    ],
)
def test_a_part_of_a_stack_is_never_selected(fields, tmp_path):
    apart, scanned = both("qwen2")
    config = lnt.LNTuningConfig(**fields)
    with pytest.raises(SelectionError, match="a stack of layers trains whole or not at all"):
        select(config, name_map=scanned.name_map)
    # An adapter of such a part fits the other form, and says why it does not fit this one.
    trainable, frozen = lnt.partition_params(apart.params, config)
    lnt.save_adapter(tmp_path / "part", trainable, config, base=frozen)
    with pytest.raises(AdapterError, match="whole or not at all"):
        lnt.restore_adapter(tmp_path / "part", scanned.params, name_map=scanned.name_map)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": r".*\.layers\.1\..*norm"},
        {"target_modules": ["layers.1.input_layernorm", "norm"]},
        {"target_modules": r".*\.\d+\..*norm"},
        {"exclude_modules": ["layers.1.input_layernorm"]},
        {"modules_to_save": [r"model\.layers\.\d+\.mlp"]},
    ],
)
def test_a_pattern_with_a_layer_needs_the_names(fields):
    """Without the map nothing in the tree's own paths has a number."""
    with pytest.raises(SelectionError, match=r"one leaf holds all layers, such as 'model\.lay"):
        select(lnt.LNTuningConfig(**fields))


def test_a_pattern_for_the_tree_s_own_paths_is_not_saved(tmp_path):
    """It would select nothing where layers are apart."""
    scanned = load("qwen2", True)
    config = lnt.LNTuningConfig(target_modules=["layers.input_layernorm"])
    leaves = select(config)
    with pytest.raises(SelectionError, match=r"the norms of this tree are 'model\.layers\.0\."):
        lnt.save_adapter(
            tmp_path / "a", leaves, config, base=scanned.params, name_map=scanned.name_map
        )
    assert not (tmp_path / "a").exists()


def test_what_does_not_fit_is_named_by_layer(tmp_path):
    scanned = load("qwen2", True)
    leaves = tuned(scanned)
    names = {"base": scanned.params, "name_map": scanned.name_map}
    lnt.save_adapter(tmp_path / "a", leaves, CONFIG, **names)
    with pytest.raises(AdapterError, match=r"params lacks 'model.layers.0.input_layernorm"):
        lnt.restore_adapter(tmp_path / "a", scanned.params)
    other = load("llama", True)
    with pytest.raises(AdapterError, match=r"lacks 'model.layers.2.input_layernorm.scale'"):
        lnt.restore_adapter(tmp_path / "a", other.params, name_map=other.name_map)
    with pytest.raises(AdapterError, match="it is for a model of another size"):
        lnt.restore_adapter(tmp_path / "a", other.params, name_map=scanned.name_map)
    changed = jax.tree.map(lambda leaf: leaf, scanned.params)
    kernel = changed["model"]["layers"]["mlp"]["down_proj"]["kernel"]
    changed["model"]["layers"]["mlp"]["down_proj"]["kernel"] = kernel + 1
    with pytest.raises(AdapterError, match=r"values of 'model.layers.\d.mlp.down_proj.kernel'"):
        lnt.restore_adapter(tmp_path / "a", changed, name_map=scanned.name_map)
    with pytest.raises(AdapterError, match="missing from trainable"):
        lnt.save_adapter(tmp_path / "b", {}, CONFIG, **names)


def test_other_libraries_stacks_have_names_too(tmp_path):
    """MaxText stacks along the second axis; without scanning it has a leaf a layer."""
    kernel = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    scales = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], np.float32)

    def tree(layers):
        return {"decoder": {**layers, "decoder_norm": {"scale": jnp.ones(3)}, "other": kernel}}

    stacked = tree({"layers": {"pre_self_attention_layer_norm": {"scale": jnp.asarray(scales)}}})
    trainable, _ = lnt.partition_params(stacked, CONFIG, name_map="maxtext_llama")
    assert list(trainable) == [
        "decoder.decoder_norm.scale",
        "decoder.layers.pre_self_attention_layer_norm.scale",
    ]
    lnt.save_adapter(tmp_path / "a", trainable, CONFIG, base=stacked, name_map="maxtext_llama")
    saved = lnt.load_adapter(tmp_path / "a").trainable
    assert saved["model.layers.1.input_layernorm.scale"].tolist() == [2.0, 4.0, 6.0]
    norms = {
        f"layers_{i}": {"pre_self_attention_layer_norm": {"scale": jnp.ones(3)}} for i in (0, 1)
    }
    restored = lnt.restore_adapter(tmp_path / "a", tree(norms), name_map="maxtext_llama_unscanned")
    found = restored["decoder"]["layers_1"]["pre_self_attention_layer_norm"]["scale"]
    assert found.tolist() == [2.0, 4.0, 6.0]


@pytest.mark.parametrize("fields", [{}, {"modules_to_save": ["self_attn"]}])
def test_what_a_bank_gives_of_a_stacked_base_is_saved_layer_by_layer(fields, tmp_path):
    apart, scanned = both("qwen2")
    config, names = CONFIG.replace(**fields), {"name_map": scanned.name_map}
    base = lnt.partition_params(scanned.params, config, **names).trainable
    adapters = {name: {p: v + size for p, v in base.items()} for name, size in (("a", 1), ("b", 2))}
    bank = lnt.bank.make_bank(scanned.params, adapters)
    mixed = lnt.bank.average(bank, ["a", "b"])
    for number, (leaves, own) in enumerate((mixed, lnt.bank.get_adapter(bank, "a"))):
        assert bool(own.modules_to_save) == bool(fields)
        path = lnt.save_adapter(tmp_path / f"{number}", leaves, own, base=scanned.params, **names)
        trainable = lnt.partition_params(lnt.restore_adapter(path, apart.params), config).trainable
        start = lnt.partition_params(apart.params, config).trainable
        moved = {p: np.full(v.shape, 1.5 - number / 2, v.dtype) + v for p, v in start.items()}
        assert trainable.keys() == start.keys()
        for leaf in start:
            np.testing.assert_allclose(trainable[leaf], moved[leaf], rtol=1e-6, atol=1e-6)
        lnt.export_peft(tmp_path / f"peft {number}", leaves, own, base=scanned.params, **names)
        again = lnt.import_peft(tmp_path / f"peft {number}", scanned.params, **names)
        assert_same(again, lnt.restore_adapter(path, scanned.params, **names))
    alone = lnt.save_adapter(tmp_path / "stacked", *mixed, base=scanned.params)
    assert_same(dict(lnt.load_adapter(alone).trainable), dict(mixed.trainable))


def test_a_bank_over_stacked_layers_reads_directories(tmp_path):
    _, scanned = both("qwen2")
    names, leaves = {"name_map": scanned.name_map}, tuned(scanned)
    ours = lnt.save_adapter(tmp_path / "ours", leaves, CONFIG, base=scanned.params, **names)
    peft = lnt.export_peft(tmp_path / "peft", leaves, CONFIG, base=scanned.params, **names)
    bank = lnt.bank.make_bank(scanned.params, {"ours": ours, "peft": peft}, **names)
    options = {"params": scanned.params, **names}
    bank = lnt.bank.replace_adapter(bank, "ours", ours, **options)
    bank = lnt.bank.add_adapter(bank, "more", peft, **options)
    for name in ("ours", "peft", "more"):
        found = lnt.bank.get_adapter(bank, name)
        assert_same(dict(found.trainable), {path: leaves[path] for path in found.trainable})
        assert found.trainable.keys() == leaves.keys()
        again = tmp_path / f"again {name}"
        lnt.save_adapter(again, *found, base=scanned.params, **names)
        assert read_metadata(again).leaves == read_metadata(ours).leaves


def test_patterns_by_layer_select_rows_and_what_an_optimizer_sees():
    _, scanned = both("qwen2")
    config = lnt.LNTuningConfig(target_modules=[r"model\.layers\.\d+\.input_layernorm"])
    params, names = scanned.params, {"name_map": scanned.name_map}
    bank = lnt.bank.make_bank(params, config=config, **names)
    assert list(bank.leaves) == ["model.layers.input_layernorm.scale"]
    assert lnt.bank.bank_bytes(params, 7, config=config, **names) == bank.nbytes
    tx = lnt.make_optimizer(optax.trace(0.9), config, **names)
    shapes = {leaf.shape for leaf in jax.tree.leaves(tx.init(params)) if leaf.ndim}
    assert shapes == {bank.leaves["model.layers.input_layernorm.scale"].shape[1:]}
