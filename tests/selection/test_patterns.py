"""Regular expressions: Python's own meaning, matched in bounded time, refused by name."""

import contextlib
import itertools
import re
import time
import types
import warnings
from functools import partial

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lntune_jax as lnt
from lntune_jax import expressions
from lntune_jax.errors import PatternError
from lntune_jax.expressions import LONGEST_PATTERN, check_expression, match_expressions
from lntune_jax.selection.patterns import MOST_EXPRESSIONS, match_patterns

# `re` needs years for most of them. The ends that no path has, "[!?]", keep `regex` from finding
# out at once that a letter is missing.
ATTACKS = {
    "nested plus": "(a+)+$",
    "alternatives": "(a|a)*b",
    "alternatives that may end": "(a|a)*[!?]",
    "dots": ".*" * 900 + "x",
    "e-mail": r"^([a-zA-Z0-9])(([\-.]|[_]+)?([a-zA-Z0-9]+))*(@){1}[a-z0-9]+[.]{1}([a-z]{2,3})$",
    "optional": "(a?){200}a{200}",
    "powers": "(.{1,1000}){1,1000}x",
    "powers that may end": "(.{1,1000}){1,1000}[!?]",
    "powers of nothing": "(?:(?:(?:.{0,1000}){0,1000}){0,1000}){0,1000}[!?]",
    "huge count": "(.{0,4294967290}){1,4294967290}x",
    "nested star": "(" * 150 + "." + ")*" * 150 + "!",
    "nested star, less deeply": "(" * 90 + "." + ")*" * 90 + "[!?]",
    "nested repeats": "(" * 300 + "." + ")+" * 300 + "!",
    "nested repeats, less deeply": "(" * 12 + "." + ")+" * 12 + "[!?]",
    "classes": "([a-z.0-9_]*)*" * 100 + "!",
    "classes that may end": "([a-z.0-9_]*)*" * 100 + "[!?]",
    "lazy": "(.*?)*?[!?]",
    "look-ahead": "(?=.*a)" * 100 + ".*",
    "negative look-ahead": "(?!.*b)(?!.*c)" * 60 + ".*x",
    "repeated look-ahead": "(?:(?=(.*)*[!.])(.|.))*[!?]",
    "back-references": r"(.*)(.*)(.*)(.*)\1\2\3\4[!?]",
    "conditions": "(a)?(?(1)(a|a)*|(b|b)*)[!?]",
    "window": ".*[a-m].{18}!",
    "letters of two cases": "(?i:.*L.{14}X|.*M.{15}Y|.*e.{16}Z)",
    # `regex` writes these out when it compiles, before its clock runs: they filled any memory.
    "copies of copies": "(?:" * 30 + "a" + ")+" * 30,
    "two or three": "(?:" * 40 + "a" + "){2,3}" * 40,
    "thousands of thousands": "(?:" * 50 + "a" + "){1000}" * 50,
    "a million": "(?:abc){1000000}",
    "billions": "a{4294967290}",
    "beyond counting": "a{99999999999999999999}",
}
MODULES = [f"model.layers.{n}.{name}" for n in range(20) for name in ("norm", "mlp", "self_attn.q")]
MODULES += [f"{'a' * 60}.{'a' * 60}.{n}" for n in range(5)] + ["a" * 300]


@pytest.mark.parametrize("match", [match_patterns, partial(match_patterns, is_inside=True)])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_catastrophic_expression_ends(monkeypatch, name, match):
    monkeypatch.setattr(expressions, "SECONDS", 0.02)
    refusals, start = [], time.monotonic()
    for patterns in (ATTACKS[name], [ATTACKS[name]]):
        try:
            match(patterns, MODULES, [])
        except PatternError as error:
            refusals.append(str(error))
    assert time.monotonic() - start < 60  # only so that a program that hangs is seen
    why = "too long|too deeply|too large|cannot be compiled"
    for text in refusals:
        assert re.search(why, text)
        assert repr(ATTACKS[name])[1:70] in text
        assert "list the modules instead" in text
        assert len(text) < 600


@pytest.mark.parametrize("name", ATTACKS)
def test_a_config_with_a_catastrophic_expression_is_made_or_refused(name):
    start = time.monotonic()
    with contextlib.suppress(PatternError):
        assert lnt.LNTuningConfig(target_modules=ATTACKS[name]).target_modules == ATTACKS[name]
    assert time.monotonic() - start < 60


def test_all_expressions_of_a_list_and_all_paths_have_one_time_limit(monkeypatch):
    seconds = itertools.count()
    clock = types.SimpleNamespace(thread_time=lambda: next(seconds) * 0.01)
    monkeypatch.setattr(expressions, "time", clock)
    many = [f"a.*{n}" for n in range(MOST_EXPRESSIONS)]
    assert len(match_patterns(many[:1], MODULES, [])) == 1  # 66 looks at the clock
    with pytest.raises(PatternError, match=r"takes too long to match the pattern 'a\.\*\d"):
        match_patterns(many, MODULES, [])
    with pytest.raises(PatternError, match=r"holds 65 that are no ends .* at most 64"):
        match_patterns([*many, "b.*"], MODULES, [])


def test_the_work_of_other_threads_is_no_reason_to_refuse(monkeypatch):
    """The clock of `regex` counts the whole program's work: then it is asked again."""
    compiled, given = re.compile("a.*"), []

    class Busy:
        def fullmatch(self, text, timeout):
            given.append(timeout)
            if len(given) < 3:
                raise TimeoutError
            return compiled.fullmatch(text)

    monkeypatch.setattr("regex.compile", lambda *_: Busy())
    assert match_expressions(["a.*"], ["ab", "b"]) == {"a.*": ["ab"]}
    assert len(given) == 4


def test_whatever_matching_raises_is_a_pattern_error(monkeypatch):
    class Full:
        def fullmatch(self, text, timeout):
            raise MemoryError

    monkeypatch.setattr("regex.compile", lambda *_: Full())
    with pytest.raises(PatternError, match=r"'a\.\*' cannot be matched \(MemoryError\)"):
        match_patterns("a.*", ["ab"], [])


@pytest.mark.parametrize(
    ("expression", "taken", "left"),
    [
        (r".*\bnorm", ["norm", "a.norm"], ["a.xnorm"]),
        (r".*(?<=layers\.0)\.norm", ["layers.0.norm"], ["layers.1.norm"]),
        (r".*(?<!decoder)\.norm", ["a.norm"], ["decoder.norm"]),
        (r"(?:(?!lm_head).)*norm", ["model.norm"], ["lm_head.norm"]),
        (r"(\w)\.\1\.norm", ["a.a.norm"], ["a.b.norm"]),
        (r"(?P<n>\w)\.(?P=n)", ["a.a"], ["a.b"]),
        (r"(a)?(?(1)b|c)", ["ab", "c"], ["b", "ac"]),
        (r"(^a|b)*", ["abb", "bb"], ["aab"]),
        ("a++b", ["aab"], ["b"]),
        ("(?>a|ab)c", ["ac"], ["abc"]),
        ("(?m)^a$", ["a"], ["b"]),
        ("(?i)(?s)A.B", ["a.b"], ["a.c"]),
        ("(?i)stra[a-z]e", ["STRAxE"], ["straße"]),
        ("(?i)STRAßE", ["straße", "Straẞe"], ["strasse"]),
        ("(?x) a \\. b  # [ the rest (", ["a.b"], ["a"]),
        ("(?a)\\w", ["a"], ["é"]),
        # What `regex` alone reads otherwise.
        ("(?:x){e}", ["x{e}"], ["y", "x", ""]),
        ("a{i<=1}", ["a{i<=1}"], ["ab"]),
        ("a{1}{e}", ["a{e}"], ["a"]),
        (r"a(?#{1})b{ 2}", ["ab{ 2}"], ["abb"]),
        (r"a[\[:digit:]]", ["ad]", "a:]"], ["a1"]),
        (r"(a)\1(?#)1", ["aa1"], ["a"]),
        # A slash stands for a dot, and is not half of an escape.
        (r"a/b", ["a.b"], ["axb"]),
        (r"a\/b[/]c", ["a.b.c"], ["a.bxc"]),
        (r"a\\/b", ["a\\.b"], ["a\\xb", "a.b"]),
    ],
)
def test_what_python_accepts_is_accepted_and_means_the_same(expression, taken, left):
    paths = [path for path in [*taken, *left] if path]
    (match,) = match_patterns(expression, paths, [])
    assert match.names == set(taken)
    (match,) = match_patterns([expression], paths, [])
    assert match.names == set(taken)


def test_a_module_with_a_letter_beyond_ascii_is_selected_by_a_pattern_without_case():
    params = {name: {"scale": jnp.ones(4)} for name in ("straße", "norm")}
    config = lnt.LNTuningConfig(target_modules="(?i)STRA.E")
    assert set(lnt.partition_params(params, config, norms=["straße", "norm"]).trainable) == {
        "straße.scale"
    }
    config = lnt.LNTuningConfig(target_modules="(?i)stra[a-z]e|norm")
    assert set(lnt.partition_params(params, config, norms=["straße", "norm"]).trainable) == {
        "norm.scale"
    }


def test_an_entry_to_save_may_have_flags_references_and_remarks():
    modules = ["a.Head", "a.Head.out", "b.b", "b.c", "ahead"]
    for entry, names in {
        "(?i)he[a]d": {"a.Head", "a.Head.out"},
        r"(\w)\.\1": {"b.b"},
        "(?x)He[a]d # the last": {"a.Head", "a.Head.out"},
    }.items():
        assert match_patterns([entry], modules, [], is_inside=True)[0].names == names


ATOMS = [*"abn.|^$AN1_{}é#-&", r"\.", r"\d", r"\W", r"\b", r"\Z", r"\1", r"\01", r"\x61", "(?#c{)"]
ATOMS += ["[ab]", "[^a.]", "[^]a]", "[a&&b]", "[a||b]", r"[\[:alpha:]]", r"[^\W_]", r"[\]a]"]
ATOMS += ["(?i:A)", "(?-i:a)", "(?s:.)", "(?x: a b # [(\n)", "{e}", "{e<=1}", "{,}", "{1", "{}"]
COUNTS = ["*", "+", "?", "*?", "+?", "{1,2}", "{2}", "{,2}", "{1,}", "*+", "?+", "{e}", "{ 2}"]
GROUPS = ["(%s)", "(?:%s)", "(?=%s)", "(?!%s)", "(?<=%s)", "(?<!%s)", "(?>%s)", "(?(1)%s)"]
GROUPS += ["(?P<g>%s)", "(?i:%s)", "(?s-i:%s)", "(?x:%s)", "(?m:%s)", "(?:a|%s)"]
bodies = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.tuples(st.sampled_from(GROUPS), inner).map(lambda pair: pair[0] % pair[1]),
        st.tuples(inner, st.sampled_from(COUNTS)).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
        st.tuples(inner, st.sampled_from(COUNTS)).map("".join),
    ),
    max_leaves=8,
)
sources = st.tuples(st.sampled_from(["", "", "(?i)", "(?x)", "(?s)", "(?ix)(?m)"]), bodies)
texts = st.lists(st.text("abnAN1_.{}e\n[]:&#- é", min_size=1, max_size=6), min_size=1, max_size=9)


@given(sources.map("".join), texts)
def test_any_expression_means_what_python_says(expression, texts):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            compiled = re.compile(expression)
        except re.error:
            with pytest.raises(PatternError, match="is not a valid regular expression"):
                check_expression(expression)
            return
        found = match_expressions([expression], texts)[expression]
    assert found == [text for text in texts if compiled.fullmatch(text)]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("[z-a]", "not a valid regular expression: bad character range z-a at position 1"),
        ("(?<=a*)b", "not a valid regular expression: look-behind requires fixed-width"),
        ("a**", "multiple repeat at position 2"),
        (r"\p{L}", r"bad escape \p at position 0"),
        (r"\L<names>", r"bad escape \L at position 0"),
        ("(?|a|b)", "unknown extension ?| at position 1"),
        ("(?R)", "unknown extension ?R"),
        ("(?e:a)", "unknown extension ?e"),
        ("(?V1)a", "unknown extension ?V"),
        ("a(?i)", "global flags not at the start of the expression at position 1"),
        ("a" * LONGEST_PATTERN + "*", "has 2,001 characters; at most 2,000 are read"),
        ("(" * 700 + ")" * 700, "nested too deeply: list the modules"),
        ("(" * 101 + ")" * 101, "nested too deeply: list the modules"),
        ("(?:a{500}){500}", "its repetitions written out have more than 50,000 characters"),
        ("a{99999999999999999999}", "the repetition number is too large"),
        ("[[a]", "is unclear: Possible nested set at position 1; put a backslash"),
    ],
)
def test_refusals_say_what_and_why(expression, message):
    with pytest.raises(PatternError, match=re.escape(message)) as caught:
        check_expression(expression)
    assert repr(expression)[1:70] in str(caught.value)
    with pytest.raises(PatternError, match=re.escape(message)):
        lnt.LNTuningConfig(target_modules=expression)
    with pytest.raises(PatternError, match=re.escape(message)):
        match_patterns([expression], ["norm"], [])


def test_repetitions_that_people_write_are_not_too_large():
    for expression in ("(?:[a-z]{1,30}\\.){1,30}norm", "(?:(?:a+b+)+c+)+", "(.{0,4294967290})*x"):
        check_expression(expression)


def test_a_path_of_any_length_is_matched():
    long = "a" * 300
    params = {long: {"norm": {"scale": jnp.ones(4)}}, "b": {long: jnp.ones((4, 4))}}
    for target in (".*norm", ["norm"], [f"{long}.norm"], [".*\\.norm"]):
        trainable, frozen = lnt.partition_params(params, lnt.LNTuningConfig(target_modules=target))
        assert list(trainable) == [f"{long}.norm.scale"]
        assert lnt.merge_params(trainable, frozen).keys() == params.keys()
