"""The appendix, docs/benchmarks/appendix-*.md: which questions, in which order, what each shows."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Section:
    """One question.

    Attributes:
        name: of the results file, and of the script unless that is given.
        title: of the section.
        script: the script, without its ending.
        arguments: with which it writes this file.
        keep: the top-level parts of the figures to show; `None` for all. The rest is in the file.
        left_out: an expression: rows whose name it finds are not shown either.
        columns: other keys for columns and tables, as in `write_tables`.
        absent: what to say where there is no results file; such a section is left out otherwise.
    """

    name: str
    title: str
    script: str | None = None
    arguments: str = ""
    keep: tuple[str, ...] | None = None
    left_out: str | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    absent: str | None = None


@dataclass(frozen=True)
class Appendix:
    """One page of the appendix: `docs/benchmarks/appendix-<name>.md`.

    Attributes:
        name: of the page.
        title: its heading.
        sections: the questions on it.
    """

    name: str
    title: str
    sections: tuple[Section, ...]


_MANY = {"time_ratio": "time (one after the other = 1)", "seconds": "one after the other_seconds"}
_PEFT = {
    "ratio": "time (PEFT's best = 1)",
    "processor_ratio": "processor time (PEFT's best = 1)",
    "limit": "limit of the ratio for ours",
    "ratio_to_ours": None,
}
_NO_GPU = """\
Nothing has been run on a GPU yet: there is no `benchmarks/results/gpu.json`. On a machine with one
NVIDIA GPU, `python benchmarks/gpu.py` writes it within ten minutes, without a network."""

APPENDICES = (
    Appendix("step", "What a step costs", (
        Section("step", "One training step", columns={
            "argument_bytes": None, "trainable_bytes": None, "flops": "matmul_flops",
            "flops_to_forward": "FLOPs (forward = 1)", "time_to_hand": "time (split by hand = 1)",
            "time_to_full": "time (full = 1)", "derived_flops": None, "derived_forward_flops": None,
            "derived_ratio": "derived limit (forward = 1)", "time_to_ours": None,
        }),
        Section("accuracy", "Accuracy by method"),
        Section("bfloat16_step", "A step in bfloat16 on a CPU", columns={
            "time_to_plain": "time (jax.jit = 1)",
        }),
        Section(
            "bfloat16_rewriting", "What the rewriting of bfloat16 products gave", "bfloat16_step",
            columns={"time_to_plain": "time (jax.jit = 1)"},
        ),
        Section("bfloat16_parity", "Small steps on a bfloat16 base", columns={
            "moved": "entries that moved, %", "seen": "seen by the forward pass, %",
            "before": "loss before", "after": "loss after", "runs": "learning rate",
        }),
        Section("dispatch", "What a call costs"),
        Section("products", "Single matrix products", columns={"by": "computed by"}),
        Section(
            "partition", "Partitioning large trees", left_out=r"^(label|report)_params",
            columns={
                "to 1,000": "a leaf (at 1,000 leaves = 1)", "milliseconds": "time_ms",
                "over JAX's": "and over jax.tree.map's",
            },
        ),
    )),
    Appendix("peft", "Beside PyTorch", (
        Section(
            "peft_step", "Beside PEFT in PyTorch", arguments="--newer PYTHON", columns=_PEFT
        ),
        Section(
            "peft_step_larger", "Beside PEFT in PyTorch: larger models", "peft_step", "--larger",
            columns=_PEFT,
        ),
        Section("torchax_step", "Through torchax", columns={"least_seconds": None}),
        Section(
            "torchax_types", "Which models run through torchax",
            keep=("summary", "norm leaves by the modules' types, against a trace"),
        ),
        Section(
            "torchax_ways", "Two ways through torchax", keep=("types", "counts", "each"),
            columns={"each": "what became of each"},
        ),
        Section("generation", "Generation beside transformers in PyTorch", columns={
            "ratio": "tokens a second (transformers' best = 1)",
            "ratio_goal": "goal",
            "least_processor_seconds": "processor time of a run_seconds",
        }),
    )),
    Appendix("memory", "Memory", (
        Section("residuals", "What the backward pass keeps"),
        Section("remat", "Computing again, to keep less", columns={
            "time_ratio": "time (LN, none = 1)", "peak_ratio": "peak (LN, none = 1)",
        }),
        Section("decoder_memory", "Remat, the loss in chunks, packed texts", columns={
            "peak_ratio": "peak (first of its group = 1)",
            "time_ratio": "time (first of its group = 1)",
        }),
        Section("memory_by_length", "Memory by the length of the sequence"),
        Section("longest_sequence", "The longest sequence that fits"),
        Section(
            "longest_sequence_llama-3.2-1b", "The longest sequence: 1B", "longest_sequence",
            "--shape llama-3.2-1b",
        ),
        Section("memory_estimate", "How near the memory estimate is", columns={
            "estimates": "", "each": None,
        }),
        Section("depth", "Norms of the top layers only", columns={
            "time_ratio": "time (all layers = 1)", "limit_gflops": "straight line_gflops",
        }),
        Section("scan_layers", "Layers in a loop", columns={
            "compile_processor_seconds": "compiling, processor_seconds",
            "compile_ratio": "compiling (apart = 1)",
            "peak_ratio": "peak (apart = 1)",
            "step_processor_seconds": "step, processor_seconds",
            "step_ratio": "step (apart = 1)",
        }),
        Section("quantised_bases", "Quantised bases", columns={
            "weights_in_dtype_mb": "weights in their dtype, MB",
            "step_time_ratio": "step (float32 = 1)",
            "only_times": None,
        }),
    )),
    Appendix("adapters", "Adapters, one and many", (
        Section("adapter_io", "Saving and restoring adapters", left_out=r"^10 MB|restore_adapter$"),
        Section("fingerprint", "Sampling the base of an adapter"),
        Section("adapter_live", "Saving beside training, and swapping adapters"),
        Section("mixed_batches", "Many adapters in one batch", columns={
            "ratio": "time (one adapter = 1)", "milliseconds": "time_ms",
        }),
        Section("many_adapters", "Many adapters in one step", columns=_MANY, keep=(
            "4 adapters, 8 tokens", "16 adapters, 8 tokens", "64 adapters, 8 tokens",
            "16 adapters, 64 tokens", "16 adapters, 512 tokens",
        )),
        Section(
            "many_adapters_chunked", "Many adapters, some at a time", "many_adapters",
            "--at-once 8", columns=_MANY,
        ),
    )),
    Appendix("devices", "GPUs and many devices", (
        Section("gpu", "On a GPU", absent=_NO_GPU, columns={
            "init_seconds": None, "limit_gb": None, "attention_note": None, "bytes_per_row": None,
            "predicted_batch": None, "last_refused": None, "refused_with": None,
        }),
        Section("gpu_compiled", "An H200, by the compiler's account", columns={
            "flops_to_2n": "FLOPs (2N = 1)", "held_bytes": "a step holds_bytes",
            "bytes_per_row": "of that a row_bytes",
            "rows_that_fit": "rows that fit", "memory_bytes": "memory to fit into_bytes",
        }),
        Section("collectives", "What a step sends between devices", columns={
            "bytes": "results of collectives, bytes", "sent": "sent by a device_bytes", "steps": "",
        }),
        Section("plan", "On TPUs, by their compiler's account", "plan_table", columns={
            "arguments_bytes": "arguments_bytes", "temporaries_bytes": "temporaries_bytes",
            "needed_bytes": "at the peak_bytes", "memory_bytes": "memory_bytes",
            "estimate_bytes": "estimate_memory_bytes",
            "estimate_to_compiled": "estimate / compiled", "passes_of_2n": "FLOPs (2N = 1)",
            "sent_bytes": "sent by a device_bytes", "length_x_length": "length x length",
            "fits": None, "flops": None, "compile_seconds": None, "date": None, "commit": None,
            "libtpu": None, "sent_all-gather_bytes": None, "sent_all-reduce_bytes": None,
            "sent_reduce-scatter_bytes": None, "sent_all-to-all_bytes": None,
            "sent_collective-permute_bytes": None,
        }),
        Section("loading_shards", "What each process reads of a checkpoint", columns={
            "asked_bytes": "asked of the file_bytes", "from_disk_bytes": "from the disk_bytes",
            "on_the_way_bytes": "most on the way_bytes",
            "share_bytes": "own share of the model_bytes", "processor_seconds": None,
        }),
        Section("paper_plan", "70B and 405B on paper", columns={
            "compiler": "compiler_bytes", "memory": "memory_bytes", "plan": "plan_bytes",
            "TPU v5p": "TPU v5p, s", "H100": "H100, s", "weights_sent": None,
            "activations_sent": None, "norms_sent": None, "operations": None,
        }),
    )),
    Appendix("start", "Start and import", (
        Section("start", "Start, and the compilation cache"),
        Section("import_time", "Importing"),
    )),
)  # fmt: skip
SECTIONS = tuple(section for appendix in APPENDICES for section in appendix.sections)
# Measured before a results file kept date, commit and load. `page.py` lists those that still lack
# them, and refuses any other file that does. A file that is measured again may leave this list.
BEFORE = (
    "adapter_io",
    "adapter_live",
    "bfloat16_parity",
    "bfloat16_rewriting",
    "bfloat16_step",
    "collectives",
    "decoder_memory",
    "depth",
    "dispatch",
    "fingerprint",
    "generation",
    "gpu_compiled",
    "import_time",
    "longest_sequence",
    "many_adapters",
    "many_adapters_chunked",
    "memory_estimate",
    "mixed_batches",
    "paper_plan",
    "partition",
    "peft_step",
    "peft_step_larger",
    "products",
    "quantised_bases",
    "remat",
    "residuals",
    "scan_layers",
    "start",
    "step",
    "torchax_step",
    "torchax_types",
    "torchax_ways",
)
