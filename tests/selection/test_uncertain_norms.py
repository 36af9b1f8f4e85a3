"""Modules that look like a norm and may be none: which are taken, which are told, and how sure.

`tests/reference/transformers_norms.json.gz` holds the modules of every architecture of
transformers; benchmarks/transformers_norms.py wrote it.
"""

import functools
import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import lntune_jax as lnt
from lntune_jax.errors import TreeError
from lntune_jax.paths import flatten, join
from lntune_jax.selection.norms import (
    GROUP_NORM,
    NORM,
    UNCERTAIN,
    find_norms,
    judge_modules,
    match_norms,
)

TABLE = Path(__file__).parents[1] / "reference/transformers_norms.json.gz"


@functools.cache
def read_architectures():
    return json.loads(gzip.decompress(TABLE.read_bytes()))["architectures"]


def shape(*axes, dtype="float32"):
    return jax.ShapeDtypeStruct(axes, jnp.dtype(dtype))


def norm(width=8, scale="scale", bias="bias"):
    return {scale: shape(width)} | ({bias: shape(width)} if bias else {})


def dense(fan_in=8, fan_out=8):
    return {"kernel": shape(fan_in, fan_out), "bias": shape(fan_out)}


def conv(fan_in=8, fan_out=8):
    return {"kernel": shape(3, 3, fan_in, fan_out), "bias": shape(fan_out)}


def judge(tree):
    return {join(path): judged for path, judged in judge_modules(tree).items()}


def list_kinds(tree):
    return {path: judged.kind for path, judged in judge(tree).items()}


def list_taken(tree):
    return {join(path) for path, kind in find_norms(tree).items() if kind == NORM}


def list_told(tree):
    """What a caller is to be told: not taken, or taken in doubt."""
    return {path for path, judged in judge(tree).items() if judged.doubt}


def make_tree(modules, with_buffers):
    """A flat tree of one architecture, named as in PyTorch."""
    tree = {}
    for path, _, _, parameters, buffers in modules:
        held = parameters | (buffers if with_buffers else {})
        for name, axes in held.items():
            dtype = "int32" if name == "num_batches_tracked" else "float32"
            tree[f"{path}.{name}" if path else name] = shape(*axes, dtype=dtype)
    return tree


@pytest.mark.parametrize("with_buffers", [True, False], ids=["with statistics", "parameters only"])
def test_every_architecture_of_transformers(with_buffers):
    right, wrong, missed, untold = 0, [], [], []
    for name, modules in read_architectures().items():
        tree = make_tree(modules, with_buffers)
        taken, told = list_taken(tree), list_told(tree)
        for path, kind, is_norm, parameters, _ in modules:
            if not parameters or (path in taken) == is_norm:
                right += is_norm
                continue
            (missed if is_norm else wrong).append((name, path, kind))
            if path not in told:
                untold.append((name, path, kind))
    assert len(read_architectures()) > 700
    assert right / (right + len(wrong)) >= 0.99, wrong
    assert right / (right + len(missed)) >= 0.99, missed
    assert untold == []


def test_few_norms_that_are_right_are_told():
    """A warning that is always there is read by nobody: most architectures give none."""
    quiet = sum(
        not list_told(make_tree(modules, with_buffers=True))
        for modules in read_architectures().values()
    )
    assert quiet > 0.75 * len(read_architectures())


@pytest.mark.parametrize(
    "tree",
    [
        {"layers_0": dense(), "layers_1": norm(), "layers_2": norm()},
        {"net.0.weight": shape(8, 8), "net.1.weight": shape(8), "net.1.bias": shape(8)},
        {"net": [dense(), norm(), norm(), dense()]},
        {"net": {"0": conv(), "1": norm(), "2": conv()}},
        {"block": {"conv1": conv(), "norm1": norm(), "conv2": conv(), "norm2": norm()}},
        {"block": {"Conv_0": conv(), "Norm_0": norm()}},
        {"norms": [norm(), norm()], "convs": [conv(), conv()]},
        {"final": norm(bias=None)},
        {"pre": norm(), "post": norm(bias=None), "fc": dense()},
        {"normalization": norm()},
        {"shortcut": {"1": norm(4), "0": conv(8, 4)}},
        {"ln_1": norm() | {"shift": shape(8)}},
        {"LayerNorm_0": norm() | {"extra": shape(8)}},
    ],
    ids=str,
)
def test_what_may_be_another_norm_is_told_and_not_taken(tree):
    tree = {"model": tree}
    likely = {
        join(leaf.path[:-1])
        for leaf in flatten(tree)[0]
        if leaf.path[-1] in ("scale", "weight") and len(leaf.value.shape) == 1
    }
    found = judge(tree)
    assert list_kinds(tree) == dict.fromkeys(likely, UNCERTAIN)
    assert all(5 < len(judged.doubt) < 80 for judged in found.values())
    assert find_norms(tree) == {}
    norms = sorted(likely)
    trainable, _ = lnt.partition_params(tree, lnt.LNTuningConfig(), norms=norms)
    assert {path.rpartition(".")[0] for path in trainable} == likely


@pytest.mark.parametrize(
    ("tree", "taken"),
    [
        ({"conv1": conv(), "layer_norm": norm()}, {"layer_norm"}),
        ({"dwconv": conv(), "norm": norm(), "pw1": dense(), "pw2": dense()}, {"norm"}),
        ({"0": norm(), "1": conv()}, {"0"}),
        ({"layers_0": norm(), "layers_1": dense()}, {"layers_0"}),
    ],
)
def test_what_is_taken_in_doubt_is_told(tree, taken):
    assert list_taken({"m": tree}) == {f"m.{name}" for name in taken}
    assert list_told({"m": tree}) == {f"m.{name}" for name in taken}


@pytest.mark.parametrize(
    ("tree", "taken"),
    [
        ({"patch_embed": {"proj": conv(3), "norm": norm()}}, {"patch_embed.norm"}),
        ({"a": {"conv": conv(), "q_norm": norm(), "k_norm": norm()}}, {"a.q_norm", "a.k_norm"}),
        ({"c": {"conv": conv(), "norm": norm(), "batch_norm": norm()}}, {"c.norm"}),
        ({"b": {"conv": conv(16, 16), "norm": norm()}}, {"b.norm"}),
        ({"b": {"Conv_0": conv(), "LayerNorm_0": norm()}}, {"b.LayerNorm_0"}),
        ({"norms": {"stage2": norm(), "stage3": norm()}}, {"norms.stage2", "norms.stage3"}),
        ({"before_rms": norm(bias=None), "qk_norm": norm(bias=None)}, {"before_rms", "qk_norm"}),
        ({"h": [{"ln_1": norm(), "mlp": dense()}], "ln_f": norm()}, {"h.0.ln_1", "ln_f"}),
    ],
)
def test_what_is_sure_is_taken_without_a_word(tree, taken):
    assert list_taken(tree) == taken
    assert list_told(tree) == set()


@pytest.mark.parametrize(
    "tree",
    [
        {"bn1": norm(), "BatchNorm_0": norm(), "sync_batch_norm": norm()},
        {"layer_scale": {"scale": shape(8)}, "ls1": norm(bias=None), "gain": norm(bias=None)},
        {"block": norm() | {"fc": dense()}},
        {"prelu": {"weight": shape(1)}},
        {"embed": {"weight": shape(16, 8)}, "fc": dense()},
        {"norm_mlp": {"weight": shape(8, 8)}},
        {"fc": {"bias": shape(8)}},
        {"fc": {"weight": shape(8), "bias": shape(4)}},
        {"x": norm() | {"mean": shape(8), "var": shape(8)}},
        {"x": norm() | {"running_mean": shape(8), "running_var": shape(8)}},
        {"ids": {"scale": shape(8, dtype="int32")}},
    ],
    ids=str,
)
def test_what_is_no_norm_is_not_told(tree):
    assert list_kinds(tree) == {}


def test_stacked_layers():
    tree = {
        "layers": {
            "ln": {"scale": shape(3, 8)},
            "final": {"scale": shape(3, 8), "bias": shape(3, 8)},
            "pre": {"scale": shape(3, 8)},
            "fc": {"kernel": shape(3, 8, 8)},
            "query": {"kernel": shape(8, 3, 4, 2)},
            "query_norm": {"scale": shape(3, 2), "bias": shape(3, 2)},
        }
    }
    assert list_taken(tree) == {"layers.ln", "layers.query_norm"}
    assert list_told(tree) == {"layers.final", "layers.pre"}


def test_linen_modules_whose_names_say_nothing():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.RMSNorm(name="final")(nn.Dense(8, name="fc")(x))
            return nn.LayerNorm(name="pre")(x)

    model, x = Model(), jnp.ones((1, 8))
    params = model.init(jax.random.key(0), x)
    assert list_kinds(params) == {"final": UNCERTAIN, "pre": UNCERTAIN}
    norms = lnt.norm_modules(model, x)
    trainable, _ = lnt.partition_params(params, lnt.LNTuningConfig(), norms=norms)
    assert set(trainable) == {"final.scale", "pre.scale", "pre.bias"}


def test_objects_are_known_by_their_type():
    model = nnx.Sequential(
        nnx.Linear(8, 8, rngs=nnx.Rngs(0)),
        nnx.LayerNorm(8, rngs=nnx.Rngs(0)),
        nnx.BatchNorm(8, rngs=nnx.Rngs(0)),
        nnx.GroupNorm(8, num_groups=2, rngs=nnx.Rngs(0)),
    )
    assert list_kinds(model) == {"layers.1": NORM, "layers.3": GROUP_NORM}
    assert list_told(model) == set()


def test_batch_norms_of_linen_in_every_form_of_keys():
    tree = {"params": {"norm": norm(), "x": norm()}, "batch_stats": {}}
    tree["batch_stats"]["norm"] = {"mean": shape(8), "var": shape(8)}
    assert list_kinds(tree) == {"x": UNCERTAIN}


def test_entries_of_norms_that_name_nothing():
    tree = {"params": {"h": {"ln": norm(), "fc": dense()}}}
    leaves, _ = flatten(tree)
    given = ["h.ln", "zz", ("params", "h", "ln", "bias"), "params/h/ln", "h", "params.h.zz", ""]
    found = match_norms(given, leaves)
    assert found.paths == {("h", "ln"), ("h", "ln", "bias")}
    assert found.unmatched == ["zz", "h", "params.h.zz", ""]
    assert match_norms("h.ln", leaves).paths == {("h", "ln")}
    assert match_norms([("layers", 0, "ln")], flatten({"layers": [{"ln": norm()}]})[0]).paths == {
        ("layers", "0", "ln")
    }
    with pytest.raises(TreeError, match="module paths"):
        match_norms([5], leaves)


def test_an_attribute_called_params_is_named_as_it_is():
    leaves, _ = flatten({"params.scale": shape(8), "ln.scale": shape(8)})
    assert match_norms(["params", "ln"], leaves).paths == {("params",), ("ln",)}
    assert match_norms(["params.ln"], leaves).paths == {("ln",)}


def test_a_tree_that_is_one_module_is_named():
    with pytest.raises(lnt.errors.SelectionError, match=r"'' \(the tree itself\).*norms="):
        lnt.partition_params({"scale": jnp.ones(4), "bias": jnp.ones(4)}, lnt.LNTuningConfig())
