"""PEFT's matching rules, written from their description, against ours."""

import re

from hypothesis import given
from hypothesis import strategies as st

from lntune_jax.selection.patterns import match_patterns

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
    found = frozenset().union(
        *(m.names for m in match_patterns(entries, modules, [], is_inside=True))
    )
    assert found == {key for key in modules if peft_saved(entries, key)}
