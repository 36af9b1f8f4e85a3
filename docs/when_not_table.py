"""Write the table of docs/when-not.md from benchmarks/results/step.json.

python docs/when_not_table.py          # writes it
python docs/when_not_table.py --check  # fails where the page differs
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "when-not.md"
RESULTS = ROOT / "benchmarks" / "results" / "step.json"
BEGIN, END = "<!-- by docs/when_not_table.py -->", "<!-- end -->"
FULL = "full fine-tuning"
WAYS = {"ours: partition_params": "LN tuning", "LoRA r=8 (qwix)": "LoRA, rank 8", FULL: FULL}


def make_table(record: dict) -> str:
    """Give a row for each model and way, and what they were measured with."""
    lines = ["| model | method | step time | memory | saved |", "|---|---|---|---|---|"]
    for model, rows in record["figures"].items():
        if FULL not in rows:
            continue  # settings and limits
        for way, name in WAYS.items():
            row = rows[way]
            memory, saved = row["peak_bytes"] / 1e6, row["saved_bytes"] / 1e6
            lines.append(
                f"| {model} | {name} | {row['time_to_full']:.2f} | {memory:,.0f} MB "
                f"| {saved:,.2f} MB |"
            )
    machine = record["machine"]
    kind, version = machine.get("cpu_model", machine["cpu"]), record["versions"]["jax"]
    lines += ["", f"{record['date']}, jax {version}, {machine['cores']} x {kind}."]
    return "\n".join(lines)


def main() -> None:
    """Write the page, or compare it."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    table = make_table(json.loads(RESULTS.read_text(encoding="utf-8")))
    new = f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}"
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(new, encoding="utf-8")
    elif new != text:
        sys.exit("docs/when-not.md: run python docs/when_not_table.py")


if __name__ == "__main__":
    main()
