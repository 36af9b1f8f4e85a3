"""The parts of `gpu.py` in PyTorch: PEFT's LN tuning and LoRA, and full fine-tuning.

As in PEFT's own benchmark: bfloat16 weights, AdamW, torch's fused attention, the loss of
transformers. Weights are drawn on the device.
"""

import gc
import os
import time
from typing import Any

import torch
from _gpu_parts import SHAPES, Shape, emit, find_largest, run_part, time_steps

RATE = 1e-4
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_module(shape: Shape) -> Any:
    """The model of transformers, random, on the device and in bfloat16 from the start."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**shape.fields(), use_cache=False, attn_implementation="sdpa")
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(DEVICE):
        module = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return module.train()


def adapt(module: Any, method: str) -> Any:
    """With PEFT's adapter in it."""
    if method == "full":
        return module
    import peft

    config: Any = peft.LNTuningConfig(task_type="CAUSAL_LM")
    if method == "lora":
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["q_proj", "v_proj"])
    return peft.get_peft_model(module, config)


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def read_memory() -> dict[str, float]:
    """The allocator's own count of bytes; nothing on a CPU."""
    if DEVICE != "cuda":
        return {}
    return {
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
    }


def measure(spec: dict) -> None:
    """One variant: step time and memory, or the largest batch."""
    if DEVICE == "cpu" and spec["shape"] != "tiny":
        raise RuntimeError("torch sees no GPU")
    shape = SHAPES[spec["shape"]]
    start = time.perf_counter()
    module = adapt(make_module(shape), spec["method"])
    wait()
    emit(init_seconds=time.perf_counter() - start, batch=shape.batch)
    trained = [each for each in module.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, RATE, weight_decay=0.0, fused=True)
    forward = torch.compile(module) if spec.get("compiled") else module

    def run(batch: int) -> float:
        optimizer.zero_grad()
        tokens = torch.randint(0, shape.words, (batch, shape.length), device=DEVICE)

        def step() -> None:
            forward(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        if not spec.get("largest"):
            start = time.perf_counter()
            step()
            wait()
            emit(compile_seconds=time.perf_counter() - start)
        return time_steps(step, wait, spec["seconds"])

    if not spec.get("largest"):
        emit(step_seconds=run(shape.batch))
        emit(**read_memory())
        return

    def bytes_of(batch: int) -> float:
        if DEVICE != "cuda":
            return batch * 1e8
        torch.cuda.reset_peak_memory_stats()
        run(batch)
        return torch.cuda.max_memory_allocated()

    def run_emptied(batch: int) -> float:
        gc.collect()  # a refused batch may be held by the error's frames
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
        return run(batch)

    limit = torch.cuda.mem_get_info()[1] * 0.95 if DEVICE == "cuda" else 1e9
    find_largest(run_emptied, bytes_of, limit, shape.batch)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run_part(measure)
