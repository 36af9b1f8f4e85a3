"""Warnings point at the line of the caller's own code, however deep they arise."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import optax

import lntune_jax as lnt
from lntune_jax.messages import warn


def catch(function):
    """The one warning that a call gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    (found,) = caught
    return found


def line_of(function):
    return inspect.getsourcelines(function)[1] + 1


def check(function):
    found = catch(function)
    assert (found.filename, found.lineno) == (__file__, line_of(function)), found


def test_a_rule_that_matches_nothing_or_does_not_divide():
    mesh = jax.sharding.AbstractMesh((4,), ("fsdp",))
    params = {"fc": {"kernel": jnp.ones((6, 2))}}

    def unmatched():
        lnt.make_specs(params, mesh, [("no_such", jax.P())])

    def undivided():
        lnt.make_specs(params, mesh)

    check(unmatched)
    check(undivided)


def test_the_same_through_shard_params_and_a_model():
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("fsdp",))

    def unmatched():
        lnt.shard_params({"fc": {"kernel": jnp.ones((6, 2))}}, mesh, [("no_such", jax.P())])

    check(unmatched)


def test_a_gradient_of_zero():
    tx = optax.sgd(0.1)
    trainable, frozen = lnt.partition_params({"ln": {"scale": jnp.ones(2)}}, lnt.LNTuningConfig())
    step = lnt.make_train_step(lambda params: jnp.zeros(()), tx)
    state = lnt.TrainState.create(trainable, tx)

    def zero():
        step(state, frozen)

    check(zero)


def test_a_library_that_calls_back_is_not_the_caller():
    def traced(x):
        warn("from within a trace", UserWarning)
        return x

    found = catch(lambda: jax.jit(traced)(1.0))
    assert (found.filename, found.lineno) == (__file__, line_of(traced))
    # The callback is our own function: the first frame outside JAX and us is this file's.
    found = catch(lambda: jax.tree.map(lnt.messages.warn, ["told"], [UserWarning]))
    assert found.filename == __file__


def test_one_warning_for_each_place_by_default():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            warn("the same", UserWarning)
    assert len(caught) == 1
