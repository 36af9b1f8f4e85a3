"""Parameters turned into `nnx.LoRAParam`; Tunix's trainer itself is in `make compat`."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lntune_jax as lnt
from lntune_jax.errors import ConfigError, SelectionError
from lntune_jax.integrations.tunix import mark_trainable

CONFIG = lnt.LNTuningConfig()


class Model(nnx.Module):
    """Norms in a list, in a dict and at the top, a LoRA parameter, and a bias without a norm."""

    def __init__(self, dtype=jnp.float32):
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List([nnx.RMSNorm(4, param_dtype=dtype, rngs=rngs) for _ in range(2)])
        self.parts = nnx.Dict(ln_1=nnx.LayerNorm(4, param_dtype=dtype, rngs=rngs))
        self.norm = nnx.RMSNorm(4, param_dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(4, 2, param_dtype=dtype, rngs=rngs)
        self.head.lora_a = nnx.LoRAParam(jnp.ones((4, 1), dtype))

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(self.parts["ln_1"](x)))


def list_marked(model):
    marked = nnx.to_flat_state(nnx.state(model, nnx.LoRAParam))
    return [".".join(map(str, path)) for path, _ in marked]


def test_marked_are_the_selected_and_what_was_marked_before():
    model = Model()
    x = jnp.arange(8.0).reshape(2, 4)
    before = model(x)
    marked = mark_trainable(model, CONFIG, norms=lnt.norm_modules(model))
    assert sorted(marked) == [
        "blocks.0.scale",
        "blocks.1.scale",
        "norm.scale",
        "parts.ln_1.bias",
        "parts.ln_1.scale",
    ]
    assert sorted(list_marked(model)) == sorted([*marked, "head.lora_a"])
    np.testing.assert_array_equal(model(x), before)


def test_an_optimizer_by_type_moves_only_these():
    import optax

    model = Model()
    mark_trainable(model, CONFIG)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.LoRAParam)
    x = jnp.arange(8.0).reshape(2, 4)
    loss_fn = nnx.grad(lambda m: (m(x) ** 2).mean(), argnums=nnx.DiffState(0, nnx.LoRAParam))
    before = {
        name: np.array(leaf.get_value())
        for name, leaf in (("norm", model.norm.scale), ("head", model.head.kernel))
    }
    optimizer.update(model, loss_fn(model))
    assert not np.array_equal(model.norm.scale.get_value(), before["norm"])
    assert np.array_equal(model.head.kernel.get_value(), before["head"])


def test_a_head_to_save_is_marked_too():
    marked = mark_trainable(Model(), CONFIG.replace(modules_to_save=["head"]))
    assert {"head.kernel", "head.bias", "norm.scale"} <= set(marked)
    assert "head.lora_a" not in marked


def test_types_count_where_names_mislead():
    class Misleading(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.first = nnx.LayerNorm(4, rngs=rngs)

    assert sorted(mark_trainable(Misleading(), CONFIG)) == ["first.bias", "first.scale"]


def test_a_shared_variable_stays_shared():
    model = Model()
    model.blocks[1].scale = model.blocks[0].scale
    mark_trainable(model, CONFIG)
    assert type(model.blocks[0].scale) is nnx.LoRAParam
    assert model.blocks[1].scale is model.blocks[0].scale


def test_low_precision_becomes_float32_unless_told_otherwise():
    for dtype, expected in (("float32", jnp.float32), (None, jnp.bfloat16)):
        model = Model(jnp.bfloat16)
        mark_trainable(model, CONFIG.replace(param_dtype=dtype))
        assert model.norm.scale.get_value().dtype == expected
        assert model.head.kernel.get_value().dtype == jnp.bfloat16


def test_metadata_is_kept():
    model = Model()
    model.norm.scale = nnx.Param(jnp.ones(4), note="kept")
    mark_trainable(model, CONFIG.replace(target_modules=["norm"]))
    assert type(model.norm.scale) is nnx.LoRAParam
    assert model.norm.scale.get_metadata()["note"] == "kept"


def test_refusals_change_nothing():
    model = Model()
    with pytest.raises(ConfigError, match="inference_mode=True"):
        mark_trainable(model, CONFIG.replace(inference_mode=True))
    with pytest.raises(SelectionError, match="head"):
        mark_trainable(model, CONFIG.replace(target_modules=["head"]))
    assert list_marked(model) == ["head.lora_a"]
