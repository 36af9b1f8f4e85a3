"""Each process reads the parts of its own devices, once, and never holds a stack of layers."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lntune_jax.errors import ShardingError
from lntune_jax.models import from_config, from_pretrained
from tests.support.checkpoints import REFERENCE
from tests.support.devices import run_on_devices
from tests.support.gguf_files import checkpoint, write
from tests.support.two_processes import run_several, run_two

LLAMA = {"model_type": "llama", "vocab_size": 64, "hidden_size": 256, "num_hidden_layers": 8}
LLAMA |= {"intermediate_size": 1024, "num_attention_heads": 4, "tie_word_embeddings": True}

# Counts what is asked of the files, and gives what the devices of this process hold of it.
COUNT = """
import math, sys, tracemalloc
import jax, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from lntune_jax.models import from_config, from_pretrained
from lntune_jax.models.loading.safetensors import Weights

asked, runs, view = [], [], Weights.read
def counted(self, key, index=()):
    part = view(self, key, index)
    asked.append(part.nbytes)
    runs.append(part.flags.c_contiguous)
    return part
Weights.read = counted

def held(leaf, itemsize):
    parts = {str(shard.index): shard.data.size for shard in leaf.addressable_shards}
    return sum(parts.values()) * itemsize

def check(apart, whole):
    for leaf, expected in zip(jax.tree.leaves(apart), jax.tree.leaves(whole), strict=True):
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, np.asarray(expected)[shard.index])
"""

PROCESSES = (
    COUNT
    + """
directory = sys.argv[3]
whole = from_pretrained(directory, "CAUSAL_LM", scan_layers=True)  # and all is imported
# Two devices of each process are copies of one another.
mesh = Mesh(np.array(jax.devices()).reshape(count, 2), ("fsdp", "data"))
asked.clear()
runs.clear()
tracemalloc.start()  # It sees numpy's memory, which is all that is on the way to the arrays.
apart = from_pretrained(directory, "CAUSAL_LM", mesh=mesh, scan_layers=True)
still, peak = tracemalloc.get_traced_memory()
tracemalloc.stop()
leaves = jax.tree.leaves(apart.params)
divided = [leaf.nbytes for leaf in leaves if not leaf.is_fully_replicated]
copies = [leaf.nbytes for leaf in leaves if leaf.is_fully_replicated]
assert sum(divided) > 100 * sum(copies)
assert sum(asked) == sum(divided) // count + sum(copies) == sum(held(leaf, 4) for leaf in leaves)
assert all(runs)  # whole rows: of a piece of each row, disks would hand over whole pages
largest = max(divided) // count
assert largest <= peak < still + 1.25 * largest + 2**20, (still, peak, largest)
check(apart.params, whole.params)
print("> done")
"""
)


def write_llama(directory: Path, **fields: object) -> Path:
    config, generator, tensors = LLAMA | fields, np.random.default_rng(0), {}
    shapes = from_config(config, "CAUSAL_LM").params
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        *module, last = (key.key for key in path)
        shape = leaf.shape[::-1] if last == "kernel" else leaf.shape
        tensors[".".join([*module, "weight"])] = generator.standard_normal(shape, np.float32)
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("count", [2, 4])
def test_each_process_reads_and_holds_its_share(tmp_path, count):
    said = run_several(count, PROCESSES, [write_llama(tmp_path / "model")])
    assert said == [["> done"]] * count


FAMILIES = (
    COUNT
    + """
import warnings
warnings.simplefilter("ignore")  # of heads that "tensor" does not divide, and of fresh ones
mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
for directory, task, options in (
    ("bert_seq_cls", "SEQ_CLS", {}),
    ("bert_seq_cls", "TOKEN_CLS", {"new_head": True}),
    ("modernbert_masked_lm", "MASKED_LM", {}),
    ("distilbert", None, {"dtype": "bfloat16"}),
    ("decoders/llama", "CAUSAL_LM", {"scan_layers": True, "frozen_layers": 1}),
    ("decoders/gpt2", "CAUSAL_LM", {"dtype": "bfloat16", "scan_layers": True}),
    ("decoders/gpt2", "CAUSAL_LM", {}),
    ("decoders/phi3", "CAUSAL_LM", {"scan_layers": True}),
    ("decoders/gemma3_text", "CAUSAL_LM", {"dtype": "bfloat16"}),
    ("decoders/olmo2", "SEQ_CLS", {"num_labels": 3}),
):
    place = sys.argv[1] + "/" + directory
    whole = from_pretrained(place, task, **options)
    asked.clear()
    apart = from_pretrained(place, task, mesh=mesh, **options)
    check(apart.params, whole.params)
    leaves = jax.tree_util.tree_leaves_with_path(apart.params)
    assert any(not leaf.is_fully_replicated for _, leaf in leaves), directory
    stored = [leaf for path, leaf in leaves if ".".join(k.key for k in path) not in apart.fresh]
    itemsize = 2 if "decoders" in directory else 4  # in the file
    assert sum(asked) == sum(held(leaf, itemsize) for leaf in stored), directory

# What a user's own specs divide: the layers of a stack, and an axis over two of the mesh's.
def specs(path, leaf):
    return {3: P("fsdp", None, ("data", "tensor")), 2: P(None, "tensor")}.get(leaf.ndim, P())

whole = from_pretrained(sys.argv[1] + "/decoders/llama", "CAUSAL_LM", scan_layers=True)
place = sys.argv[1] + "/decoders/llama"
apart = from_pretrained(place, "CAUSAL_LM", mesh=mesh, specs=specs, scan_layers=True)
kernel = apart.params["model"]["layers"]["mlp"]["gate_proj"]["kernel"]
assert kernel.sharding.shard_shape(kernel.shape) == (1, 24, 9), kernel.shape
check(apart.params, whole.params)
print("done")
"""
)


def test_families_on_a_mesh_are_read_by_parts_and_are_the_same_to_the_bit():
    run_on_devices(FAMILIES, 8, REFERENCE)


GGUF = """
import sys
import gguf
import jax, numpy as np
from jax.sharding import AxisType, PartitionSpec as P
from lntune_jax.models import from_pretrained

octets, numbers = [], gguf.dequantize
def counted(data, kind):
    octets.append(data.nbytes)
    return numbers(data, kind)
gguf.dequantize = counted

mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
def divide(path, leaf):
    # Also norms, and of queries and keys heads that are cut in two.
    return {1: P(("fsdp", "tensor")), 2: P("fsdp", "tensor")}[leaf.ndim]

for file in sys.argv[1:]:
    octets.clear()
    whole = from_pretrained(file, "CAUSAL_LM")
    all_of_it = sum(octets)
    # Half a row of 96 numbers ends within the second of three blocks of 32.
    most = 1.4 if "Q8_0" in file else 1.05
    for specs in (None, divide):
        octets.clear()
        apart = from_pretrained(file, "CAUSAL_LM", mesh=mesh, specs=specs)
        jax.tree.map(np.testing.assert_array_equal, apart.params, whole.params)
        assert all_of_it <= sum(octets) < most * all_of_it, (file, specs, sum(octets) / all_of_it)
        assert max(octets) < all_of_it / 4
print("done")
"""


def test_parts_of_a_gguf_file_are_read_by_blocks(tmp_path):
    files = []
    for name, kind in (("llama", "Q8_0"), ("llama", "F16"), ("gpt2", "Q8_0"), ("gemma2", "BF16")):
        config, _ = checkpoint(name)
        if name == "gpt2":
            config |= {"n_embd": 96, "n_inner": 192, "n_layer": 1, "n_head": 4}
        else:
            config |= {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 1}
            config |= {"head_dim": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
            config |= {"attention_bias": name == "llama", "mlp_bias": False}
            config |= {"layer_types": ["sliding_attention"]} if name == "gemma2" else {}
        config |= {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
        generator, tensors = np.random.default_rng(0), {}
        shapes = from_config(config, "CAUSAL_LM").params
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
            *module, last = (key.key for key in path)
            key = ".".join([*module, "bias" if last == "bias" else "weight"])
            shape = leaf.shape[::-1] if last == "kernel" and name != "gpt2" else leaf.shape
            tensors[key] = generator.standard_normal(shape, np.float32)
        files.append(write(tmp_path / f"{name}-{kind}.gguf", config, tensors, quantised=kind))
    run_on_devices(GGUF, 4, *files)


QUANTIZED = """
import os
import lntune_jax as lnt
from lntune_jax.models import from_pretrained

small, other, broken = sys.argv[3:]
def check(kind, mesh):
    whole = from_pretrained(small, "CAUSAL_LM", quantize=kind)
    with jax.set_mesh(mesh):
        apart = from_pretrained(small, "CAUSAL_LM", quantize=kind, mesh=mesh)
    pairs = zip(*(jax.tree_util.tree_leaves_with_path(m.params) for m in (apart, whole)))
    divided = 0
    for (path, leaf), (_, expected) in pairs:
        assert leaf.sharding.mesh == mesh and leaf.dtype == expected.dtype
        divided += path[-1].key == "qvalue" and not leaf.is_fully_replicated
        for shard in leaf.addressable_shards:
            found, right = np.asarray(shard.data), np.asarray(expected)[shard.index]
            np.testing.assert_array_equal(found.astype("float32"), right.astype("float32"))
    assert divided
for kind, explicit in (("int8", False), ("nf4", True), ("fp8", False), ("int4", True)):
    axis = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
    check(kind, jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(axis,) * 2))

def attempt(title, place):
    grid = Mesh(np.array(jax.devices()).reshape(2, 2), ("tensor", "fsdp"))
    try:
        from_pretrained(place, "CAUSAL_LM", mesh=grid)
        print(">", title, "done", flush=True)
    except lnt.LNTuningError as error:
        print(">", title, type(error).__name__, str(error).replace("\\n", " "), flush=True)
attempt("nowhere", "./nowhere" if rank else small)
attempt("differ", broken)
attempt("right", other)
"""


def test_bits_of_quantised_kernels_and_errors_of_one_process(tmp_path):
    fields = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 1}
    small = write_llama(tmp_path / "small", **fields, tie_word_embeddings=False)
    tied = []
    for name, factor in (("other", 1), ("broken", 2)):
        tied.append(write_llama(tmp_path / name, **fields))
        tensors = load_file(tied[-1] / "model.safetensors")
        head = tensors["model.embed_tokens.weight"].copy()
        head[40:] *= factor  # of rows that the second process alone reads
        save_file(tensors | {"lm_head.weight": head}, tied[-1] / "model.safetensors")
    first, second = run_two(QUANTIZED, [small, *tied])
    nowhere, differ, right = first
    assert "> nowhere AnotherProcessError process 1 of 2 could not do its part" in nowhere
    assert "> differ AnotherProcessError process 1" in differ
    assert "lm_head.weight and model.embed_tokens.weight differ" in differ
    assert second[0].startswith("> nowhere ModelError './nowhere' is neither a directory")
    assert second[1].startswith("> differ ModelError")
    assert right == second[2] == "> right done"


def test_what_is_no_mesh_is_refused():
    with pytest.raises(ShardingError, match=r"mesh must be a jax\.sharding\.Mesh, not 'fsdp=2'"):
        from_pretrained(REFERENCE / "bert", mesh="fsdp=2")
