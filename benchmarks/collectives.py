"""What does a training step send between devices: LN tuning beside full fine-tuning?

A small Llama, compiled for eight simulated devices on meshes of every kind; the collectives are
read from the compiled program. Nothing runs. Results are those of the CPU's compiler, which writes
a reduce-scatter as an all-reduce and a slice; other backends merge and overlap more.
"""

import argparse
import os

from tests.support.collectives import LLAMA, measure

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

from _results import write_results

import lntune_jax as lnt
from lntune_jax.models import from_config
from lntune_jax.models.planning.collectives import KINDS, total

MESHES = ({"data": 8}, {"fsdp": 8}, {"tensor": 8}, {"data": 2, "fsdp": 2, "tensor": 2})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="every collective, not only the sums")
    options = parser.parse_args()
    model = from_config(LLAMA, "CAUSAL_LM", dtype="float32")
    report = lnt.report_params(model.params, lnt.LNTuningConfig())
    print(f"base {4 * report.total:,} bytes, norms {4 * report.trainable:,} bytes")
    rows = []
    for sizes in MESHES:
        for method in ("ln", "full"):
            found = measure(sizes, method)
            sums = {kind: total(found, kind) for kind in KINDS if total(found, kind)}
            sent = sum(each.sent for each in found)
            shown = ", ".join(f"{kind} {size:,}" for kind, size in sums.items())
            print(f"{sizes}, {method}: {shown}; sent by a device {sent:,}", flush=True)
            for each in found if options.list else ():
                print(
                    f"  {each.kind:18} {each.bytes:>10,} {each.shapes} x{each.turns} "
                    f"group {each.group} {each.source[-90:]}"
                )
            rows.append({"mesh": sizes, "method": method, "bytes": sums, "sent": sent})
    write_results(
        "collectives",
        {
            "base_bytes": 4 * report.total,
            "norm_bytes": 4 * report.trainable,
            "steps": rows,
        },
    )


if __name__ == "__main__":
    main()
