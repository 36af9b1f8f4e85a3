"""MaxText: scanned parameters; its own optimizer and trainer under the mask of our config."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import maxtext
import numpy as np
import optax
import pytest
from checks import check_equal, check_moved, check_selection, check_trace, check_tuning, list_leaves
from flax import nnx
from maxtext.configs import pyconfig
from maxtext.layers.normalizations import RMSNorm
from maxtext.optimizers import optimizers
from maxtext.utils import maxtext_utils, model_creation_utils

import lntune_jax as lnt
from lntune_jax.bank.sources import select_paths

CONFIG = lnt.LNTuningConfig()
SIZES = {"base_num_decoder_layers": 4, "base_emb_dim": 32, "base_mlp_dim": 48, "head_dim": 8}
SIZES |= {"base_num_query_heads": 4, "base_num_kv_heads": 2, "vocab_size": 64}
SIZES |= {"max_target_length": 12, "per_device_batch_size": 4, "dtype": "float32"}
FIXED = {"override_model_config": True, "run_name": "norms", "enable_checkpointing": False}
FIXED |= {"skip_jax_distributed_system": True, "attention": "dot_product", "hardware": "cpu"}
BASE = Path(maxtext.__file__).parent / "configs" / "base.yml"
TOKENS = np.random.default_rng(0).integers(0, 16, (4, 12)).astype("int32")


def list_arguments(model_name, **changes):
    settings = FIXED | SIZES | {"model_name": model_name, "base_output_directory": "/tmp"} | changes
    return [str(BASE), *(f"{key}={value}" for key, value in settings.items())]


def read_settings(model_name="llama3.1-8b", **changes):
    return pyconfig.initialize(["", *list_arguments(model_name, **changes)])


def make_model(settings):
    mesh = jax.sharding.Mesh(maxtext_utils.create_device_mesh(settings), settings.mesh_axes)
    with jax.set_mesh(mesh):
        rngs = nnx.Rngs(params=0, dropout=1)
        return model_creation_utils.from_config(settings, mesh=mesh, rngs=rngs)


def list_norms(model):
    found = nnx.iter_modules(model)
    return {".".join(map(str, path)) for path, module in found if isinstance(module, RMSNorm)}


def make_functions(model):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    positions = jnp.broadcast_to(jnp.arange(12), (4, 12))

    def apply_fn(params, tokens):
        model = nnx.merge(graphdef, params, rest, copy=True)  # its RNG counts on
        segments = jnp.ones_like(tokens)
        return model(tokens, positions, decoder_segment_ids=segments, enable_dropout=False)

    def loss_fn(params, tokens):
        logits = apply_fn(params, tokens)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    return params, apply_fn, loss_fn


CASES = {
    "llama": ("llama3.1-8b", {}, (32, 4)),
    "llama, layer axis 0": ("llama3.1-8b", {"param_scan_axis": 0}, (4, 32)),
    "llama, not scanned": ("llama3.1-8b", {"scan_layers": False}, (32,)),
    "qwen3": ("qwen3-8b", {}, (32, 4)),
    "gemma2": ("gemma2-2b", {"base_num_kv_heads": 2}, (32, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_norms_are_those_of_the_module_type(name):
    model_name, changes, shape = CASES[name]
    model = make_model(read_settings(model_name, **changes))
    params, expected = nnx.state(model, nnx.Param), list_norms(model)
    trainable = check_selection(params, CONFIG, expected)
    check_trace(make_functions(model)[1], params, TOKENS, expected)
    stacked = [leaf for path, leaf in trainable.items() if "layers" in path and "_norm" in path]
    assert shape in {leaf.shape for leaf in stacked}
    # The mask finds the same leaves, by MaxText's own function.
    mask = lnt.select(params, CONFIG).patterns()
    is_trained = optimizers._get_path_mask_fn(mask)
    for tree in (params, {"params": nnx.to_pure_dict(params)}):
        found = {path for path, trains in list_leaves(is_trained(tree)).items() if trains}
        assert found == set(trainable)


def test_maxtext_our_step(record, tmp_path):
    settings = read_settings()
    model = make_model(settings)
    _, apply_fn, loss_fn = make_functions(model)
    check_tuning(
        record,
        lambda: nnx.state(make_model(settings), nnx.Param),
        CONFIG,
        list_norms(model),
        loss_fn,
        TOKENS,
        tmp_path,
        apply_fn=apply_fn,
    )


def test_maxtext_its_optimizer(record, tmp_path):
    shapes = nnx.state(make_model(read_settings()), nnx.Param)
    # Only what comes before attention: a part of the norms, by a pattern.
    config = lnt.LNTuningConfig(target_modules=[".*pre_self_attention.*", "decoder_norm"])
    mask = lnt.select(shapes, config).patterns()
    assert len(mask) == 2
    settings = read_settings(trainable_parameters_mask=mask)
    assert settings.trainable_parameters_mask == mask
    tx = optimizers.get_optimizer(settings, lambda step: 1e-2)
    base, apply_fn, loss_fn = make_functions(make_model(settings))
    params, opt_state = base, tx.init(base)
    state_size = sum(leaf.size for leaf in jax.tree.leaves(opt_state))
    assert state_size == 2 * (32 + 4 * 32) + 2  # two moments of each, two counts

    @jax.jit
    def step(params, opt_state):
        loss, grads = jax.value_and_grad(loss_fn)(params, TOKENS)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    losses = []
    for _ in range(20):
        params, opt_state, loss = step(params, opt_state)
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    trainable = lnt.partition_params(params, config).trainable
    check_moved(base, params, trainable)
    path = lnt.save_adapter(tmp_path / "adapter", trainable, config, base=base)
    restored = lnt.restore_adapter(path, nnx.state(make_model(settings), nnx.Param))
    output = jax.jit(apply_fn)
    check_equal(output(restored, TOKENS), output(params, TOKENS))
    record(
        norms=2,
        selected=len(trainable),
        leaves=len(list_leaves(params)),
        before=losses[0],
        after=losses[-1],
        restored="equal",
    )


def test_maxtext_its_trainer(record, tmp_path):
    """The whole of MaxText's `train`, on its synthetic data, with the mask on its command line."""
    mask = lnt.select(nnx.state(make_model(read_settings()), nnx.Param), CONFIG).patterns()
    done = subprocess.run(
        [
            sys.executable, "-m", "maxtext.trainers.pre_train.train",
            *list_arguments("llama3.1-8b", base_output_directory=tmp_path),
            "dataset_type=synthetic", "steps=10", "learning_rate=0.05", "warmup_steps_fraction=0",
            f"trainable_parameters_mask={mask}",
        ],
        capture_output=True, text=True, timeout=600, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    steps = re.findall(
        r"completed step: (\d+),.* loss: ([\d.]+), lm_loss", done.stdout + done.stderr
    )
    losses = [float(loss) for _, loss in steps]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    record(
        norms=3,
        selected=3,
        leaves=12,
        before=losses[0],
        after=losses[-1],
        restored="not saved by us",
    )


def test_an_adapter_layer_by_layer(tmp_path):
    model = make_model(read_settings())
    params = nnx.state(model, nnx.Param)
    config = lnt.LNTuningConfig(model_type="llama")
    trainable, _ = lnt.partition_params(params, config, name_map="maxtext_llama")
    path = tmp_path / "adapter"
    lnt.save_adapter(path, trainable, config, base=params, name_map="maxtext_llama")
    saved = lnt.load_adapter(path).trainable
    assert len(saved) == 9
    assert saved["model.layers.3.input_layernorm.scale"].shape == (32,)
    restored = lnt.restore_adapter(path, params, name_map="maxtext_llama")
    check_equal(restored, params)


def test_a_config_from_the_leaves_of_an_adapter():
    """`select_paths` gives the config that trains exactly these leaves; the mask follows it."""
    params = nnx.state(make_model(read_settings()), nnx.Param)
    leaves = list_leaves(params)
    paths = ["decoder.layers.post_self_attention_layer_norm.scale"]
    config = select_paths(paths, {path: leaves[path] for path in paths})
    check_selection(params, config, {paths[0].removesuffix(".scale")})
    assert lnt.select(params, config).patterns() == [
        "^(params/)*decoder/layers/post_self_attention_layer_norm/scale(/value)?$"
    ]


def test_the_example(run_example):
    said = run_example("maxtext_training.py")
    assert "^(params/)*decoder/decoder_norm/scale(/value)?$" in said
    assert "optimizer state: 450 numbers" in said
    assert "identical True" in said
