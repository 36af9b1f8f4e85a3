"""Figures inside pages that people write: what stands between markers is made from results files.

A figure in a sentence names its file and the way to it; a block names a function of `_blocks.py`:

    takes <!-- figure: step > MiniLM-L6 > ours: partition_params > time_to_full as .2f --> ... end

After "as" stands how it is written: "percent", "saved" (the rest to 100 %), "times" (one divided by
it), a unit ("bytes", "seconds", "ms", "GB"), or a format of Python. Without it: about three digits.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from _blocks import BLOCKS
from _tables import write_figure

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
