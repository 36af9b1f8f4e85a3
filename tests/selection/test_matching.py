"""PEFT's matching rules, and the bounded-time expressions behind ours."""

import contextlib
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lntune_jax.errors import PatternError
from lntune_jax.selection.patterns import match_patterns, match_saved
from lntune_jax.selection.regex import Pattern

segments = st.sampled_from(["a", "b", "ln_1", "ln", "norm", "layers", "0", "1", "head"])
paths = st.lists(segments, min_size=1, max_size=4).map(".".join)
trees = st.lists(paths, min_size=1, max_size=8, unique=True)


def peft_target(pattern, key):
    """PEFT's rule for target_modules and exclude_modules, written from its description."""
    if isinstance(pattern, str):
        return re.fullmatch(pattern, key) is not None
    return any(key == entry or key.endswith("." + entry) for entry in pattern)


def peft_saved(entries, key):
    return any(re.match(rf"(^|.*\.){entry}($|\..*)", key) for entry in entries)


@given(trees, st.lists(paths, min_size=1, max_size=3))
def test_lists_agree_with_peft(modules, entries):
    found = frozenset().union(*(m.names for m in match_patterns(entries, modules, [])))
    assert found == {key for key in modules if peft_target(entries, key)}


@given(trees, paths)
def test_strings_agree_with_peft(modules, pattern):
    (match,) = match_patterns(pattern, modules, [])
    assert match.names == {key for key in modules if peft_target(pattern, key)}


@given(trees, st.lists(paths, min_size=1, max_size=3))
def test_saved_modules_agree_with_peft(modules, entries):
    found = frozenset().union(*(m.names for m in match_saved(entries, modules, [])))
    assert found == {key for key in modules if peft_saved(entries, key)}


atoms = st.sampled_from([*"abn.|^$", r"\.", r"\d", r"\w", "[ab]", "[^a.]", "(?i:A)", "1", "_"])
expressions = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        inner.map("(?:{})".format),
        inner.map("({})".format),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "{1,2}", "{2}", "{,2}"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
        st.tuples(st.sampled_from(["(?={})", "(?!{})"]), inner, inner).map(
            lambda parts: parts[0].format(parts[1]) + parts[2]
        ),
    ),
    max_leaves=6,
)


@given(expressions, st.lists(st.text("abnA1._", max_size=6), min_size=1, max_size=8))
def test_expressions_agree_with_re(expression, texts):
    try:
        pattern = Pattern(expression)
    except PatternError:  # a lookahead or an anchor inside a repetition is refused
        assert re.search(r"\(\?[=!]|[$^]", expression)
        return
    for text in texts:
        assert pattern.fullmatch(text) == bool(re.fullmatch(expression, text)), text


@pytest.mark.parametrize(
    "expression",
    [
        "(a+)+$",
        "(a|a)*b",
        "(.*)*(.*)*x",
        "(a?){200}a{200}",
        "((a{9}){9}){9}",
        "(a|b|ab)*" * 50 + "c",
    ],
)
def test_catastrophic_expressions_end(expression):
    start = time.monotonic()
    with contextlib.suppress(PatternError):
        Pattern(expression).fullmatch("a" * 300 + "!")
    assert time.monotonic() - start < 30  # `re` would need years; the bound is a count of steps


def test_an_expression_that_takes_too_many_steps_is_an_error():
    with pytest.raises(PatternError, match=r"takes too long.*100,000 steps"):
        Pattern("(.{1,1000}){1,1000}x").fullmatch("a" * 600)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (r"(a)\1", "a backreference"),
        (r"(?<=a)b", "a lookbehind"),
        (r"(?:(?=a).)*", "a lookahead inside a repetition"),
        (r"\bnorm", "a word boundary"),
        ("(^a|b)*", "an anchor inside a repetition"),
        ("a++", "a possessive repetition"),
        ("(?>a)", "an atomic group"),
        ("(?m)a", "an inline flag"),
        ("a" * 3000, "3,000 characters"),
        ("(" * 700 + ")" * 700, "nested too deeply"),
        ("[z-a]", "not a valid regular expression: bad character range"),
    ],
)
def test_refusals_say_what_and_why(expression, message):
    with pytest.raises(PatternError, match=re.escape(message)):
        Pattern(expression)
