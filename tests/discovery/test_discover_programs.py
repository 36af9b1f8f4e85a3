"""Norms inside whatever a function may call, and kernels that cannot be looked into."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import lntune_jax as lnt
from lntune_jax.errors import TraceWarning
from tests.support.traced import between, make_params, mean, plain, shape, standardized

X = shape(4, 8)


def find(apply, params, *args):
    found = lnt.discover_norms(apply, params, *args)
    assert not found.ambiguous
    assert not found.opaque
    return list(found)


@jax.custom_vjp
def with_own_gradient(x, a, b):
    return standardized({"a": a, "b": b}, x)


with_own_gradient.defvjp(
    lambda x, a, b: (with_own_gradient(x, a, b), (x, a)),
    lambda kept, g: (g * kept[1], (g * kept[0]).sum(0), g.sum(0)),
)


@jax.custom_jvp
def with_own_tangent(x, a, b):
    return standardized({"a": a, "b": b}, x)


with_own_tangent.defjvp(lambda primals, tangents: (with_own_tangent(*primals), tangents[0]))


def by_row(p, x):
    return jax.vmap(lambda row: standardized(p, row[None])[0])(x)


def in_branches(p, x):
    return lax.cond(x.sum() > 0, lambda: standardized(p, x), lambda: jnp.tanh(x))


def over_shards(p, x):
    mesh = jax.make_mesh((1,), ("data",), (AxisType.Auto,), devices=jax.devices()[:1])
    run = jax.shard_map(standardized, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
    return run({"a": p["a"], "b": p["b"]}, x)


def handed_on(p, x):
    a, b = lax.optimization_barrier((p["a"], p["b"]))
    a = lax.stop_gradient(a.astype("bfloat16")).astype("float32")
    return standardized({"a": a.reshape(2, 4).T.T.reshape(8), "b": jnp.copy(b)}, x)


def mapped(p, x):
    return lax.map(lambda row: standardized(p, row), x)


CALLS = {
    "jit": jax.jit(standardized),
    "jit in jit": jax.jit(lambda p, x: jax.jit(standardized)(p, x)),
    "remat": jax.checkpoint(standardized),
    "custom_vjp": lambda p, x: with_own_gradient(x, p["a"], p["b"]),
    "custom_jvp": lambda p, x: with_own_tangent(x, p["a"], p["b"]),
    "vmap": by_row,
    "lax.map": mapped,
    "cond": in_branches,
    "shard_map": over_shards,
    "casts and copies": handed_on,
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name):
    assert find(between(CALLS[name]), make_params("a", "b"), X) == ["a", "b"]


LAYERS = {"a": shape(3, 8), "b": shape(3, 8), "k": shape(3, 8, 8), "l": shape(3, 8)}


def run_layer(p, x):
    return x + jnp.tanh(standardized(p, x) @ p["k"] + p["l"])


def scanned(p, x):
    return lax.scan(lambda x, own: (run_layer(own, x), None), x, p)[0]


def scanned_with_remat(p, x):
    step = jax.checkpoint(run_layer)
    return lax.scan(lambda x, own: (step(own, x), None), x, p, unroll=3)[0]


def indexed_by_the_loop(p, x):
    def step(i, x):
        return run_layer({name: leaf[i] for name, leaf in p.items()}, x)

    return lax.fori_loop(0, 3, step, x)


def carried_by_the_loop(p, x):
    def step(state):
        i, p, x = state
        one = {name: lax.dynamic_index_in_dim(p[name], i, keepdims=False) for name in p}
        return i + 1, p, run_layer(one, x)

    return lax.while_loop(lambda state: state[0] < 3, step, (0, p, x))[2]


def taken(p, x):
    for i in range(3):
        x = run_layer({name: jnp.take(leaf, i, axis=0) for name, leaf in p.items()}, x)
    return x


@pytest.mark.parametrize(
    "run", [scanned, scanned_with_remat, indexed_by_the_loop, carried_by_the_loop, taken]
)
def test_stacked_layers(run):
    found = lnt.discover_norms(run, LAYERS, X)
    assert list(found) == ["a", "b"]
    assert {leaf.layer_axes for leaf in found.norms} == {(0,)}


def test_layers_along_another_axis_and_a_stack_of_one():
    params = {"a": shape(8, 3), "b": shape(8, 3), "k": shape(3, 8, 8), "l": shape(3, 8)}
    found = lnt.discover_norms(
        lambda p, x: scanned(p | {"a": p["a"].T, "b": p["b"].T}, x), params, X
    )
    assert [leaf.layer_axes for leaf in found.norms] == [(1,), (1,)]
    one = {name: shape(1, *leaf.shape[1:]) for name, leaf in LAYERS.items()}
    assert [leaf.layer_axes for leaf in lnt.discover_norms(scanned, one, X).norms] == [(0,), (0,)]


def test_layers_that_are_stacked_by_the_function_itself():
    params = [{name: shape(*leaf.shape[1:]) for name, leaf in LAYERS.items()} for _ in range(3)]

    def apply(p, x):
        return scanned(jax.tree.map(lambda *leaves: jnp.stack(leaves), *p), x)

    assert find(apply, params, X) == ["0.a", "0.b", "1.a", "1.b", "2.a", "2.b"]


def test_one_norm_for_every_turn_of_a_loop():
    params = make_params("a", "b") | {"c": shape(8)}

    def apply(p, x):
        x = lax.scan(lambda x, _: (x + between(standardized)(p, x), None), x, None, length=3)[0]
        return lax.fori_loop(0, 2, lambda _, x: jnp.tanh(plain({"a": p["c"]}, x)), x)

    assert find(apply, params, X) == ["a", "b", "c"]


def test_many_sets_of_parameters_at_once():
    params = {"a": shape(5, 8), "b": shape(5, 8)}
    assert find(jax.vmap(standardized, (0, None)), params, X) == ["a", "b"]
    assert find(jax.vmap(standardized, (0, 0)), params, shape(5, 4, 8)) == ["a", "b"]


def test_a_scale_that_is_another_thing_elsewhere_is_ambiguous():
    def tied(p, x):
        return jnp.tanh(standardized(p, x)) * p["a"]

    with pytest.warns(TraceWarning, match="'a' is used as the scale of a layer norm, mul"):
        found = lnt.discover_norms(tied, make_params("a", "b"), X)
    assert list(found) == ["b"]
    assert found.ambiguous == {"a": ("the scale of a layer norm", "mul")}
    assert "ambiguous: a is used as the scale of a layer norm, mul" in str(found)
    assert find(lambda p, x: standardized(p, jnp.tanh(standardized(p, x))), make_params(*"ab"), X)

    def halves(p, x):
        return standardized({"a": p["a"][0], "b": p["a"][1]}, x)

    with pytest.warns(TraceWarning, match="used as the scale of a layer norm, the bias of a"):
        assert not list(lnt.discover_norms(halves, {"a": shape(2, 8)}, X))
    with pytest.warns(TraceWarning, match="not a loss with a penalty"):
        lnt.discover_norms(
            lambda p, x: standardized(p, x).sum() + (p["a"] ** 2).sum(), make_params(*"ab"), X
        )


def used_again(p, x):
    y = x * p["a"]
    return y * lax.rsqrt(mean(x**2)) + y


def written_again(p, x):
    return x * p["a"] * lax.rsqrt(mean(x**2)) + x * p["a"]


def returned_too(p, x):
    return x * p["a"] * lax.rsqrt(mean(x**2)), x * p["a"]


@pytest.mark.parametrize("apply", [used_again, written_again, returned_too])
def test_a_product_that_is_used_again_is_ambiguous(apply):
    with pytest.warns(TraceWarning, match="'a' is used as the scale of a rms norm, mul"):
        assert not list(lnt.discover_norms(apply, make_params("a"), X))


def kernel(x, a, y):
    y[...] = x[...] * lax.rsqrt(jnp.mean(x[...] ** 2, -1, keepdims=True) + 1e-6) * a[...]


def in_pallas(p, x):
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(kernel, out_shape=out, interpret=True)(x, p["a"][None])


def in_a_callback(p, x):
    def compute(x, a):
        return np.asarray(x / np.sqrt(np.mean(x**2, -1, keepdims=True)) * a, np.float32)

    return jax.pure_callback(compute, jax.ShapeDtypeStruct(x.shape, x.dtype), x, p["a"])


def in_a_foreign_function(p, x):
    call = jax.ffi.ffi_call("no_such_norm", jax.ShapeDtypeStruct(x.shape, x.dtype))
    return call(x, p["a"])


@pytest.mark.parametrize(
    ("norm", "name"),
    [(in_pallas, "pallas_call"), (in_a_callback, "pure_callback"), (in_a_foreign_function, "ffi")],
)
def test_kernels_that_cannot_be_traced_are_named(norm, name):
    def apply(p, x):
        return plain({"a": p["b"]}, between(jax.jit(norm))(p, x))

    with pytest.warns(TraceWarning, match=f"'a' goes into {name}.*which cannot be traced"):
        found = lnt.discover_norms(apply, make_params("a", "b"), X)
    assert list(found) == ["b"]
    assert list(found.opaque) == ["a"]
    assert f"opaque: a goes into {name}" in str(found)


def test_a_primitive_of_another_library_is_opaque():
    primitive = jax.extend.core.Primitive("some_norm")
    primitive.def_abstract_eval(lambda x, a: x)
    with pytest.warns(TraceWarning, match="some_norm"):
        found = lnt.discover_norms(lambda p, x: primitive.bind(x, p["a"]), make_params("a"), X)
    assert found.opaque == {"a": "some_norm"}


def test_printing_a_leaf_is_no_use_of_it():
    def apply(p, x):
        jax.debug.print("{}", p["a"])
        return mean(standardized(p, x))

    assert find(apply, make_params("a", "b"), X) == ["a", "b"]
