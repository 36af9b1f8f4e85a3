"""What would a step hold on an H200, by the account of XLA's own compiler for it?

No GPU takes part: the steps of `gpu.py` are compiled for a described device (jax's CUDA plugin can
do that without one), and the compiler says how many bytes a step holds. Nothing runs, so there are
no times; the autotuner is off, and what cuDNN's attention computes and needs to work in is not
counted. FLOPs are of the matmuls in the compiled program, as a ratio to 2N: one pass. PEFT's
own benchmark reports 20.2 GB for its LN tuning of the 3B shape at this batch (4 x 768 tokens).

Needs, in an environment of its own: pip install "jax[cuda13]" flax optax orbax-checkpoint.
"""

import argparse
import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from _gpu_jax import compile_step, make_model, make_state, make_step
from _gpu_parts import SHAPES
from _results import write_results
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental import topologies

from lntune_jax.models.planning.program import count_flops

TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 151397597184 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H200"
"""
MEMORY = 141e9 * 0.95
PEFT = 20.2e9  # github.com/huggingface/peft, method_comparison/MetaMathQA, Llama-3.2-3B, ln_tuning
VARIANTS = {
    "ours": {},
    "ours, remat dots_saveable": {"remat": "dots_saveable"},
    "ours, remat dots_with_no_batch_dims_saveable": {"remat": "dots_with_no_batch_dims_saveable"},
    "ours, remat full": {"remat": "full"},
    "ours, XLA's attention": {"attention": "xla"},
    "ours, logits whole": {"chunk": 128256},
    "full, all in bfloat16": {"method": "full"},
    "full, float32 masters and moments": {"method": "full", "masters": True},
}


def find_device():
    """An H200 that is only described."""
    options = {"target_config": TARGET, "topology": "1x1x1"}
    found = topologies.get_topology_desc("h200", "cuda", **options)
    # The plugin is asked for cuDNN's version when a step is traced; here is none to ask.
    cudnn.check_cudnn_version = lambda: 91000
    cudnn.check_compute_capability = lambda _: True
    return found.devices[0]


def compile_for(name: str, spec: dict, device, batch: int | None = None) -> tuple[int, float]:
    """Matmul FLOPs of a step compiled for the device, and the bytes that it holds there."""
    shape = SHAPES[name]
    spec = {"method": "ln", "batch": batch or shape.batch, "length": shape.length} | spec
    model = make_model(shape, spec, spec.get("attention", "cudnn"))
    if spec["method"] == "full":
        given = jax.eval_shape(lambda params: make_state(model, params, spec), model.params)
    else:  # the norms are small enough to be there
        given = make_state(model, jax.tree_util.tree_map_with_path(make_norms, model.params), spec)
    place = jax.sharding.SingleDeviceSharding(device)

    def put(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    tokens = put(jax.ShapeDtypeStruct((spec["batch"], spec["length"]), "int32"))
    options = {"xla_gpu_autotune_level": 0}  # there is no device to try things on
    given = jax.tree.map(put, given)
    compiled, held = compile_step(make_step(model, spec), *given, tokens, options)
    return count_flops(compiled.as_text()), held


def make_norms(path, leaf):
    return jnp.ones(leaf.shape, leaf.dtype) if path[-1].key == "scale" else leaf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["3B", "8B"])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    options = parser.parse_args()
    device, figures = find_device(), {}
    settings = {"device": device.device_kind, "memory_bytes": MEMORY}
    for name in options.shapes:
        shape = SHAPES[name]
        for variant in options.variants:
            flops, held = compile_for(name, VARIANTS[variant], device)
            more = compile_for(name, VARIANTS[variant], device, 2 * shape.batch)[1]
            row = (more - held) / shape.batch
            fits = int(shape.batch + (MEMORY - held) / row)
            counted = 2 * shape.multiplied * shape.batch * shape.length
            own = {
                "flops_to_2n": flops / counted,
                "held_bytes": held,
                "bytes_per_row": row,
                "rows_that_fit": max(fits, 0),
            }
            if (name, variant[:4]) == ("3B", "ours"):
                own["held_bytes_goal"] = PEFT
            figures.setdefault(name, {})[variant] = own
            cells = f"{flops / counted:6.3f} of 2N {held / 1e9:7.2f} GB {row / 1e9:6.2f} a row"
            print(f"{name:4s} {variant:36s} {cells}", flush=True)
            path = write_results("gpu_compiled", figures | {"settings": settings})
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
