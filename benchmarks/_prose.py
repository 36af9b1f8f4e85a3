"""Figures inside pages that people write: what stands between markers is made from results files.

A figure in a sentence names its file and the way to it; a block names a function in `BLOCKS`:

    takes <!-- figure: step > MiniLM-L6 > ours: partition_params > time_to_full as .2f --> ... end

After "as" stands how it is written: "percent", "saved" (the rest to 100 %), "times" (one divided by
it), a unit ("bytes", "seconds", "ms", "GB"), or a format of Python. Without it: about three digits.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from _sections import APPENDICES, BEFORE
from _tables import write_figure, write_table

Found = Mapping[str, dict]

SHAPE = "MiniLM-L6"
OURS, FULL = "ours: partition_params", "full fine-tuning"
# What readers call the rows of step.json.
WAYS = {
    OURS: "**LN tuning here**: `partition_params`",
    "ours: make_optimizer": "LN tuning here, whole tree: `make_optimizer`",
    "multi_transform": "ten lines of Optax: `multi_transform`",
    "mistake: clip before the partition": "ten lines, clipping outside",
    "mistake: MultiSteps outside": "ten lines, `MultiSteps` outside",
    "LoRA r=8 (qwix)": "LoRA r=8 (qwix)",
    FULL: "full fine-tuning",
}
COLUMNS = {
    "flops_to_forward": "FLOPs (forward = 1)",
    "peak_bytes": "memory_bytes",
    "output_bytes": "new outputs_bytes",
    "state_bytes": "optimizer state_bytes",
    "saved_bytes": "saved_bytes",
}
# Entries of all norms of a model, as the tests of the models count them.
VALUES = {"all-MiniLM-L6-v2": 9_984, "Llama-3.2-3B": 175_104, "Llama-2-7B": 266_240}
# How peft_step.json names a model, and how a reader does.
PEFT_SHAPES = {
    "minilm": "MiniLM",
    "bert": "BERT-base",
    "smollm2": "SmolLM2-135M",
    "gpt2": "GPT-2-124M",
}
REQUIRED = ("date", "commit", "load")


def write_short(found: Found) -> list[str]:
    """Each way to tune one model, and what a step of it costs beside full fine-tuning."""
    rows = found["step"]["figures"][SHAPE]
    columns = {"time_to_full": "time (full fine-tuning = 1)", **COLUMNS}
    table = [
        ([name], {own: rows[key][old] for old, own in columns.items() if old in rows[key]})
        for key, name in WAYS.items()
        if key in rows
    ]
    return write_table(table, ["one step"], {})


def write_peft(found: Found) -> list[str]:
    """Ours beside PEFT's best, for every shape of both files."""
    ways = {
        "ours": "ours",
        "ours, memory kept": "memory kept",
        "ours, memory kept, oneDNN": "and oneDNN",
        "ours, a device a core": "and a device a core",
        "ours, memory kept, newer JAX": "memory kept, newer JAX",
        "PEFT eager, 2 threads": "PEFT eager, two threads",
        "PEFT compiled, 2 threads": "PEFT compiled, two threads",
    }
    table = []
    for file in ("peft_step", "peft_step_larger"):
        for name, rows in found[file]["figures"].items():
            model, _, rest = name.partition(":")
            if model in PEFT_SHAPES:
                size, dtype = rest.split(":")
                shown = f"{PEFT_SHAPES[model]}, {size.replace('x', ' x ')}, {dtype}"
                cells = {
                    own: f"{rows[way]['ratio']:.2f}" for way, own in ways.items() if way in rows
                }
                table.append(([shown], cells))
    return write_table(table, ["time (PEFT's best = 1)"], {})


def write_products(found: Found) -> list[str]:
    """Milliseconds of batches of small products, by each library."""
    ways = {"XLA": "XLA", "XLA without YNN": "Eigen", "XLA with oneDNN": "oneDNN", "torch": "torch"}
    table = [
        ([name], {own: rows[way]["milliseconds"] for way, own in ways.items() if way in rows})
        for name, rows in found["products"]["figures"].items()
        if " of " in name
    ]
    return write_table(table, ["a batch of products, ms"], {})


def write_mixed(found: Found) -> list[str]:
    """The time of a batch whose rows use different adapters, one adapter = 1."""
    tables = {
        name: rows
        for name, rows in found["mixed_batches"]["figures"].items()
        if isinstance(rows, Mapping)
    }
    ways = list(next(iter(tables.values())))
    rows = [([way], {name: f"{tables[name][way]['ratio']:.2f}" for name in tables}) for way in ways]
    return write_table(rows, ["time (one adapter = 1)"], {})


def write_longest(found: Found) -> list[str]:
    """The longest sequence that fits, by method and kind of remat."""
    table = found["longest_sequence"]["figures"]["tokens in one row"]
    rows = [
        ([name], {key: value for key, value in row.items() if not key.startswith("held")})
        for name, row in table.items()
    ]
    return write_table(rows, ["tokens in one row that fit into"], {})


def write_bank(found: Found) -> list[str]:
    """Bytes of a bank in float32: adapters x values x 4. Arithmetic, nothing measured."""
    del found
    rows = [
        ([model], {
            "values": values,
            **{f"{count:,} adapters_bytes": values * 4 * count for count in (1_000, 10_000)},
        })
        for model, values in VALUES.items()
    ]  # fmt: skip
    return write_table(rows, ["base"], {})


def write_machines(found: Found) -> list[str]:
    """Which files come from which machine."""
    files: dict[str, list[str]] = {}
    for name, record in found.items():
        files.setdefault(describe_machine(record["machine"]), []).append(f"`{name}`")
    return [f"- {machine}: {', '.join(names)}" for machine, names in sorted(files.items())]


def write_before(found: Found) -> list[str]:
    """Files from before date, commit and load were kept, with what each lacks."""
    lacking: dict[str, list[str]] = {}
    for name in BEFORE:
        missing = find_missing(found[name]) if name in found else []
        if missing:
            lacking.setdefault(", ".join(missing), []).append(f"`{name}`")
    return [f"- without {what}: {', '.join(names)}" for what, names in lacking.items()] or ["None."]


def write_contents(found: Found) -> list[str]:
    """Links to the pages of the appendix."""
    del found
    return [f"- [{each.title}](benchmarks/appendix-{each.name}.md)" for each in APPENDICES]


def find_missing(record: Mapping[str, Any]) -> list[str]:
    """What a results file does not say about when and on what it was measured."""
    return [key for key in REQUIRED if not record.get(key)]


def write_methods(found: Found) -> list[str]:
    """LN tuning, LoRA and full fine-tuning, a row for each model and method."""
    record = found["step"]
    names = {OURS: "LN tuning", "LoRA r=8 (qwix)": "LoRA, rank 8", FULL: FULL}
    lines = ["| model | method | step time | memory | saved |", "|---|---|---|---|---|"]
    for model, rows in record["figures"].items():
        for way, name in names.items() if FULL in rows else ():  # else settings and limits
            row = rows[way]
            memory, saved = row["peak_bytes"] / 1e6, row["saved_bytes"] / 1e6
            lines.append(
                f"| {model} | {name} | {row['time_to_full']:.2f} | {memory:,.0f} MB "
                f"| {saved:,.2f} MB |"
            )
    where = describe_machine(record["machine"])
    return [*lines, "", f"{record['date']}, jax {record['versions']['jax']}, {where}."]


def describe_machine(machine: Mapping[str, Any]) -> str:
    """The processor, its cores and the memory, as far as the file says."""
    held = f", {machine['memory_gb']} GB" if machine.get("memory_gb") else ""
    return f"{machine['cores']} cores of {machine.get('cpu_model') or machine['cpu']}{held}"


BLOCKS: dict[str, Callable[[Found], Sequence[str]]] = {
    "": write_short,  # the README's
    "one step": write_short,
    "by method": write_methods,
    "beside PEFT": write_peft,
    "products": write_products,
    "many adapters in one batch": write_mixed,
    "longest sequence": write_longest,
    "memory of a bank": write_bank,
    "machines": write_machines,
    "measured before": write_before,
    "appendix": write_contents,
}

END = "<!-- end -->"
_FIGURE = re.compile(r"(<!-- figure: ([^\n]+?) -->).*?" + re.escape(END), re.DOTALL)
_BLOCK = re.compile(
    r"(<!-- by benchmarks/page\.py(?:: ([^\n]+?))? -->).*?" + re.escape(END), re.DOTALL
)
_FORMAT = re.compile(r" as ([^\s>]+)$")


def find_pages(folder: Path) -> Iterator[Path]:
    """Every page of a checkout that has markers."""
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md"):
        for page in sorted(folder.glob(pattern)):
            text = page.read_text(encoding="utf-8")
            if _FIGURE.search(text) or _BLOCK.search(text):
                yield page


def fill(text: str, found: Mapping[str, dict]) -> str:
    """A page's text with everything between markers made anew from the results files."""

    def put_block(match: re.Match[str]) -> str:
        lines = "\n".join(BLOCKS[match[2] or ""](found)).strip("\n")
        return f"{match[1]}\n\n{lines}\n\n{END}"

    def put_figure(match: re.Match[str]) -> str:
        return f"{match[1]}{read_figure(match[2], found)}{END}"

    return _FIGURE.sub(put_figure, _BLOCK.sub(put_block, text))


def read_figure(words: str, found: Mapping[str, dict]) -> str:
    """One figure, by the words of its marker.

    Raises:
        KeyError: If there is no such figure; the message says which part of the way is missing.
    """
    style = _FORMAT.search(words)
    name, *way = (words[: style.start()] if style else words).split(" > ")
    if name not in found:
        raise KeyError(f"no results file {name!r}, in the marker 'figure: {words}'")
    value: Any = found[name]["figures"]
    for key in way:
        if not isinstance(value, Mapping) or key not in value:
            raise KeyError(f"{name}.json has no {key!r}, in the marker 'figure: {words}'")
        value = value[key]
    return _write(value, style[1] if style else None, way[-1])


def remove_made(text: str) -> str:
    """A page's text without what stands between markers."""
    return _BLOCK.sub("", _FIGURE.sub("", text))


def _write(value: Any, style: str | None, key: str) -> str:
    if style is None or style in ("bytes", "seconds", "flops"):
        return write_figure(value, style or key)
    if style in ("percent", "saved"):
        return f"{100 * (value if style == 'percent' else 1 - value):.0f} %"
    if style == "times":
        return f"{1 / value:.1f}"
    if style in ("ms", "MB", "GB"):
        return f"{write_figure(value)} {style}"
    return format(value, style)
