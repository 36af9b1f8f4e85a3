"""Every message that docs/troubleshooting.md quotes is one of the package's."""

import ast
import re

import pytest

from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
TABLE = re.compile(r"^\| `(.+?)` \|(.*)\|$", re.MULTILINE)
ROWS = TABLE.findall(PAGE)
HOLE = "\0"  # what an f-string fills in
GROUPS = ("Selecting", "Saving and restoring", "PEFT", "Command line", "Many devices", "Memory")


def read_text(node):
    """The text of a string, an f-string or a sum of them, with holes for what is filled in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else HOLE
    if isinstance(node, ast.JoinedStr):
        return "".join(read_text(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return read_text(node.left) + read_text(node.right)
    return HOLE


def is_docstring(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def list_texts(node):
    """Each string of the code, whole; docstrings are no messages."""
    if is_docstring(node):
        return
    if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
        text = read_text(node)
        if text.strip(HOLE):
            yield text
    for child in ast.iter_child_nodes(node):
        yield from list_texts(child)


TEXTS = [
    text
    for path in sorted((ROOT / "lntune_jax").rglob("*.py"))
    for text in list_texts(ast.parse(path.read_text()))
]


def to_pattern(message):
    """`...` on the page stands for anything, other words for themselves."""
    return re.compile(".*".join(re.escape(part.strip(" ")) for part in message.split("...")), re.S)


@pytest.mark.parametrize("message", [row[0] for row in ROWS])
def test_a_quoted_message_is_in_the_source(message):
    assert len(message.replace("...", "").strip()) > 10
    assert any(to_pattern(message).search(text) for text in TEXTS)


def test_what_is_no_message_is_found_out():
    assert not any(to_pattern("no LayerNorm or RMSNorm was found").search(text) for text in TEXTS)


def test_every_row_has_a_message_and_says_what_to_do():
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")]
    lines = [line for line in lines if not line.startswith("| message |")]
    assert len(lines) == len(ROWS) > 20  # none has a form that the other tests miss
    assert [message for message, cure in ROWS if not cure.strip()] == []


def test_every_task_has_its_group():
    groups = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert [name for name in GROUPS if name not in groups] == []
    listed = re.findall(r"^- \[(.+)\]\(#", PAGE, re.MULTILINE)
    assert listed == groups
