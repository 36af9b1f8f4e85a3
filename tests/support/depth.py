"""Norms of the top layers only: the model, the config and the compiled gradient."""

import jax

import lntune_jax as lnt
from lntune_jax.models import from_config
from tests.support.shapes import split_loss


def top_norms(k, layers):
    """The config of the last norm and those of the top k layers."""
    numbers = "|".join(str(number) for number in range(layers - k, layers))
    below = rf"|model\.layers\.({numbers})\..*" if k else ""
    return lnt.LNTuningConfig(target_modules=rf"model\.norm{below}")


def make_model(config, k, scanned):
    """The model with the layers below the top k in a loop of their own, where that is of use."""
    layers = config["num_hidden_layers"]
    frozen = 0 if not scanned or k == layers else min(layers - k, layers - 1)
    return from_config(config, "CAUSAL_LM", scan_layers=scanned, frozen_layers=frozen)


def compile_top(model, k, tokens):
    """Loss and gradient by the norms of the top k layers, and what they are called with."""
    config = top_norms(k, model.settings.num_hidden_layers)
    loss, given = split_loss(model, "ln", tokens, config)
    return jax.jit(jax.value_and_grad(loss)).lower(*given, tokens).compile(), given
