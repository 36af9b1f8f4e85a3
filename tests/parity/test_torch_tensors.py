"""A tree of PyTorch tensors is refused by name: JAX takes none of them."""

import numpy as np
import pytest
import torch

import lntune_jax as lnt
from lntune_jax.errors import TreeError


def test_torch_tensors_are_named():
    for leaf in (torch.ones(4), torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))):
        for tree in ({"ln.weight": leaf}, {"fc": {"weight": leaf}, "ln": {"scale": np.ones(4)}}):
            with pytest.raises(TreeError, match=r"weight' is a torch.*detach"):
                lnt.partition_params(tree, lnt.LNTuningConfig())
