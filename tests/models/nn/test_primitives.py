"""The names of JAX's operations, which nothing but a comparison with JAX keeps right."""

import ast
from itertools import chain

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.extend.core import primitives as known

from lntune_jax.models.nn import primitives
from tests.support.paths import ROOT

# Of versions that are supported, only the older ones give this name a meaning.
OLDER = {"closed_call"}


def list_names():
    values = vars(primitives).values()
    sets = [value for value in values if isinstance(value, frozenset)]
    return {*chain(*sets), primitives.PRODUCT, primitives.OWN_GRADIENT, primitives.REMAT}


def list_traced(function):
    traced = jax.make_jaxpr(function)(jnp.ones((4, 4)))
    return {equation.primitive.name for equation in traced.jaxpr.eqns}


def test_every_name_is_one_of_jax_s():
    there = {value.name for name, value in vars(known).items() if name.endswith("_p")}
    # What JAX does not list.
    there |= list_traced(lambda x: jnp.split(x, 2)) | list_traced(jax.lax.optimization_barrier)
    assert list_names() - there <= OLDER
    assert "checkpoint" not in there  # A name that it once had: the comparison finds such.


def test_calls_and_recomputation_have_the_names_that_are_looked_for():
    assert list_traced(jax.checkpoint(jnp.sin)) == {primitives.REMAT}
    assert list_traced(jax.jit(jnp.sin)) == {"jit"}
    assert list_traced(lambda x: x @ x) == {primitives.PRODUCT}
    assert list_traced(lambda x: jax.lax.scan(lambda c, _: (c, None), x, length=3)[0]) == {"scan"}
    assert list_traced(lambda x: checkpoint_name(x, "x")) == {primitives.NAMED}
    kernel = pl.pallas_call(lambda x, y: None, out_shape=jax.ShapeDtypeStruct((4, 4), "float32"))
    assert list_traced(kernel) == {primitives.KERNEL}
    own = jax.custom_vjp(jnp.sin)
    own.defvjp(lambda x: (x, x), lambda _, g: (g,))
    assert list_traced(own) == {primitives.OWN_GRADIENT}


@pytest.mark.parametrize("name", sorted({*list_names(), primitives.FLASH_ATTENTION} - {"jit"}))
def test_no_other_file_of_the_models_compares_with_a_name(name):
    found = []
    for path in ROOT.glob("lntune_jax/models/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if path.name != "primitives.py" and isinstance(node, ast.Compare):
                words = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                if name in words and "primitive" in ast.unparse(node):
                    found.append(f"{path}:{node.lineno}")
    assert found == []
