"""What a step of models of all sizes takes on TPUs, by the compiler for them; no TPU takes part.

Each row is compiled by `lntune_jax.models.plan` from sizes alone: LN tuning in bfloat16, layers in
one loop, attention by the chips' kernel where a row says "auto". Operations inside of the kernel
are not counted. Large models take minutes each: rows that are in the results are passed over, so
that a run can be stopped and continued. Beside what the compiler says stands what
`estimate_memory` says.

Needs the extra `plan`: make plan.
"""

import argparse
import json
from datetime import UTC, datetime

from _results import RESULTS, find_commit, find_versions, write_results

from lntune_jax.models import plan
from lntune_jax.models.planning.collectives import KINDS


def llama(width: int, inner: int, layers: int, heads: int, shared: int, words: int) -> dict:
    return {
        "model_type": "llama",
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "tie_word_embeddings": False,
        "max_position_embeddings": 131072,
    }


MODELS = {
    "Llama 2 7B": llama(4096, 11008, 32, 32, 32, 32000),
    "Llama 2 13B": llama(5120, 13824, 40, 40, 40, 32000),
    "Gemma 2 27B": {
        "model_type": "gemma2",
        "vocab_size": 256000,
        "hidden_size": 4608,
        "intermediate_size": 36864,
        "num_hidden_layers": 46,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "query_pre_attn_scalar": 144,
        "max_position_embeddings": 8192,
    },
    "Llama 3 70B": llama(8192, 28672, 80, 64, 8, 128256),
    "Llama 3.1 405B": llama(16384, 53248, 126, 128, 8, 128256),
}
# Model, chips, mesh, rows of all chips, tokens in a row, rematerialisation, attention.
ROWS = (
    ("Llama 2 7B", "v5e-8", {"fsdp": 8}, 8, 2048, "none", "auto"),
    ("Llama 2 7B", "v5e-8", {"fsdp": 8}, 8, 2048, "full", "auto"),
    ("Llama 2 7B", "v5e-8", {"fsdp": 8}, 8, 2048, "full", "xla"),
    ("Llama 2 13B", "v5p-8", {"fsdp": 8}, 8, 2048, "none", "auto"),
    ("Llama 2 13B", "v5e-16", {"fsdp": 16}, 16, 2048, "full", "auto"),
    ("Llama 3.1 405B", "v5p-256", {"fsdp": 64, "tensor": 4}, 256, 4096, "full", "auto"),
    ("Llama 3 70B", "v5e-256", {"fsdp": 256}, 256, 2048, "full", "auto"),
    ("Gemma 2 27B", "v5e-32", {"fsdp": 32}, 32, 2048, "full", "auto"),
    ("Gemma 2 27B", "v6e-16", {"fsdp": 16}, 16, 2048, "full", "auto"),
    ("Llama 3 70B", "v5e-64", {"fsdp": 64}, 64, 2048, "full", "auto"),
    ("Llama 3 70B", "v5p-64", {"fsdp": 64}, 64, 4096, "full", "auto"),
    ("Llama 3.1 405B", "v5p-1024", {"fsdp": 256, "tensor": 4}, 1024, 4096, "full", "auto"),
)


def name_row(
    model: str, chips: str, mesh: dict, rows: int, length: int, remat: str, attention: str
) -> str:
    sizes = ",".join(f"{axis}={size}" for axis, size in mesh.items())
    return f"{model}, {chips}, {sizes}, {rows} x {length}, remat {remat}, {attention}"


def read_rows() -> dict:
    path = RESULTS / "plan.json"
    return json.loads(path.read_text())["figures"] if path.is_file() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=len(ROWS), help="only so many rows")
    parser.add_argument("--again", action="store_true", help="also rows that are there")
    options = parser.parse_args()
    figures, commit = read_rows(), find_commit()
    for row in ROWS[: options.first]:
        model, chips, mesh, rows, length, remat, attention = row
        name = name_row(*row)
        if name in figures and not options.again:
            continue
        found = plan(
            MODELS[model],
            chips=chips,
            mesh=mesh,
            batch=rows,
            length=length,
            remat=remat,
            attention=attention,
            search=False,
            progress=print,
        )
        step, estimate = found.steps["ln"], found.estimates["ln"]
        sent = step.sent and {kind: each.sent for kind, each in step.sent.items()}
        figures[name] = {
            "arguments_bytes": step.arguments,
            "temporaries_bytes": step.temporaries,
            "needed_bytes": step.needed,
            "memory_bytes": step.memory,
            "fits": step.fits,
            "estimate_bytes": estimate,
            "estimate_to_compiled": None if estimate is None else estimate / step.needed,
            "flops": step.flops,
            "passes_of_2n": found.passes(step),
            "sent_bytes": None if sent is None else sum(sent.values()),
            "length_x_length": step.square and step.square[0],
            **{f"sent_{kind}_bytes": (sent or {}).get(kind) for kind in KINDS},
            "compile_seconds": step.seconds,
            "date": datetime.now(UTC).date().isoformat(),
            "commit": commit,
            "libtpu": find_versions(("libtpu",)).get("libtpu"),
        }
        write_results("plan", figures, ("libtpu",))
        print(found, flush=True)


if __name__ == "__main__":
    main()
