"""Norms of the top layers only: the backward pass ends below them, scanned or apart."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.errors import SelectionError
from lntune_jax.models import estimate_memory, from_config, from_pretrained, generate
from lntune_jax.models.planning.program import count_flops
from tests.support import depth
from tests.support.decoders import REFERENCE
from tests.support.step_memory import TINY

TOKENS = jax.ShapeDtypeStruct((2, 64), "int32")
LAYERS = 3
CONFIG = TINY | {"num_hidden_layers": LAYERS}


def flops(k: int, form: str) -> int:
    model = depth.make_model(CONFIG, k, form == "scanned")
    return count_flops(depth.compile_top(model, k, TOKENS)[0].as_text())


def test_each_layer_that_trains_costs_the_same():
    """A straight line from the forward pass, where only the last norm trains, to all layers."""
    apart = {k: flops(k, "apart") for k in (0, 1, LAYERS)}
    print(apart)
    each = apart[1] - apart[0]
    assert each > 0
    assert apart == {k: apart[0] + k * each for k in apart}
    assert flops(1, "scanned") == apart[1]


def test_a_single_stack_trains_whole():
    """What `frozen_layers` is for."""
    one = from_config(CONFIG, "CAUSAL_LM", scan_layers=True)
    with pytest.raises(SelectionError, match="trains whole or not at all"):
        lnt.partition_params(one.params, depth.top_norms(1, LAYERS), name_map=one.name_map)
    two = depth.make_model(CONFIG, 1, True)
    halves = lnt.partition_params(two.params, depth.top_norms(1, LAYERS), name_map=two.name_map)
    assert [name for name in halves.trainable if "layers" in name] == [
        f"model.layers.upper.{norm}.scale"
        for norm in ("input_layernorm", "post_attention_layernorm")
    ]


def test_stacks_of_gpt2_are_named_as_its_layers_are():
    config = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 5, "vocab_size": 16}
    model = from_config(config, scan_layers=True, frozen_layers=2)
    stacks = {leaf: model.params["h"][leaf]["ln_1"]["scale"].shape for leaf in model.params["h"]}
    assert stacks == {"lower": (2, 8), "upper": (3, 8)}
    report = lnt.report_params(
        model.params,
        lnt.LNTuningConfig(target_modules=r"h\.[234]\.ln_1"),
        name_map=model.name_map,
    )
    assert report.trainable == 3 * 2 * 8


@pytest.mark.long
def test_two_stacks_compute_what_separate_layers_do(tmp_path):
    """Gemma 2, whose layers differ: logits, gradients and tokens; one adapter fits both forms."""
    path, frozen = REFERENCE / "gemma2", 1
    apart = from_pretrained(path, "CAUSAL_LM")
    split = from_pretrained(path, "CAUSAL_LM", scan_layers=True, frozen_layers=frozen)
    ids = np.random.default_rng(3).integers(4, 60, (2, 12)).astype(np.int32)
    layers = apart.settings.num_hidden_layers
    numbers = "|".join(str(number) for number in range(frozen, layers))
    config = lnt.LNTuningConfig(target_modules=rf".*\.({numbers})\..*(norm|ln_\d)")
    found = {}
    for form, model in {"apart": apart, "split": split}.items():
        halves = lnt.partition_params(model.params, config, name_map=model.name_map)

        @jax.jit
        def step(trainable, frozen, apply=model.apply):
            def loss(params):
                logits = apply(params, ids).logits
                return (logits**2).mean(), logits

            (_, logits), gradients = lnt.value_and_grad(loss, has_aux=True)(trainable, frozen)
            return logits, gradients

        logits, gradients = step(*halves)
        moved = jax.tree.map(lambda leaf, gradient: leaf - gradient, halves.trainable, gradients)
        lnt.save_adapter(tmp_path / form, moved, config, base=model.params, name_map=model.name_map)
        found[form] = logits, lnt.load_adapter(tmp_path / form).trainable
    np.testing.assert_allclose(found["split"][0], found["apart"][0], rtol=1e-5, atol=1e-5)
    assert sorted(found["split"][1]) == sorted(found["apart"][1])
    for leaf, expected in found["apart"][1].items():
        np.testing.assert_allclose(found["split"][1][leaf], expected, rtol=1e-5, atol=1e-5)
    tuned = lnt.restore_adapter(tmp_path / "apart", split.params, name_map=split.name_map)
    assert not all(map(np.array_equal, jax.tree.leaves(tuned), jax.tree.leaves(split.params)))
    tokens = [generate(m, m.params, ids[:, :5], max_new_tokens=6).tokens for m in (apart, split)]
    np.testing.assert_array_equal(*tokens)


def test_the_estimate_counts_the_layers_that_are_differentiated():
    top = lnt.LNTuningConfig(target_modules=r"model\.layers\.2\..*norm|model\.norm")
    one, all_train, split = (
        estimate_memory(
            from_config(CONFIG, "CAUSAL_LM", scan_layers=True, frozen_layers=frozen),
            length=64,
            config=config,
        )
        for frozen, config in ((0, None), (2, None), (2, top))
    )
    assert split.activations == one.activations // 3
    assert all_train.activations == one.activations
    assert all_train.weights == one.weights


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frozen_layers": 2}, "frozen_layers is 2, which only scan_layers=True reads"),
        ({"frozen_layers": -1, "scan_layers": True}, "frozen_layers is -1; expected an integer"),
        ({"frozen_layers": 3, "scan_layers": True}, "a layer above them must be left"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(lnt.LNTuningError, match=message):
        from_config(CONFIG, "CAUSAL_LM", **options)
