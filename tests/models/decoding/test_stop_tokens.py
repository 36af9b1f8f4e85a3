"""Where a text ends when nothing is said: the model's own end-of-sequence tokens."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from transformers import LlamaConfig

from lntune_jax.errors import ModelError
from lntune_jax.models import from_config, from_pretrained, generate, stream
from tests.support.checkpoints import REFERENCE

LLAMA = REFERENCE / "decoders" / "llama"
PROMPT = [[7, 21, 33, 5, 48]]


def directory_with(path, config=None, generation=None):
    """The tiny Llama with fields of its config changed, and a generation_config.json."""
    shutil.copytree(LLAMA, path, dirs_exist_ok=True)
    fields = json.loads((path / "config.json").read_text()) | (config or {})
    (path / "config.json").write_text(json.dumps(fields))
    if generation is not None:
        text = generation if isinstance(generation, str) else json.dumps(generation)
        (path / "generation_config.json").write_text(text)
    return path


@pytest.fixture(scope="module")
def free():
    """The tokens of the tiny Llama where nothing stops it."""
    model = from_pretrained(LLAMA, "CAUSAL_LM")
    return generate(model, model.params, PROMPT, max_new_tokens=8, stop_tokens=()).tokens[0]


def test_the_model_ends_a_text_at_its_own_tokens(tmp_path, free):
    """The config's; generation_config.json's before it, as in transformers; one or several."""
    stop, other = int(free[3]), int(free[1])
    whole = len(free)
    cases = [
        ({"eos_token_id": stop}, None, (stop,)),
        ({"eos_token_id": [stop, other]}, None, (stop, other)),
        ({"eos_token_id": other}, {"eos_token_id": [stop, 59_999]}, (stop,)),
        ({"eos_token_id": stop}, {"temperature": 0.5}, (stop,)),
        ({"eos_token_id": stop}, {"eos_token_id": None}, ()),
        ({"eos_token_id": None}, None, ()),
    ]
    for number, (config, generation, stops) in enumerate(cases):
        path = directory_with(tmp_path / str(number), config, generation)
        model = from_pretrained(path, "CAUSAL_LM")
        assert model.stop_tokens == tuple(sorted(stops))
        assert from_config(path, "CAUSAL_LM").stop_tokens == model.stop_tokens
        ends = [place for place, token in enumerate(free) if token in stops]
        length = ends[0] + 1 if ends else whole
        found = generate(model, model.params, PROMPT, max_new_tokens=whole)
        assert found.lengths.tolist() == [length]
        assert found.tokens[0].tolist() == free[:length].tolist()
        assert len(list(stream(model, model.params, PROMPT, max_new_tokens=whole))) == length
        # What is passed goes before what the model says.
        found = generate(model, model.params, PROMPT, max_new_tokens=whole, stop_tokens=())
        assert found.tokens[0].tolist() == free.tolist()


def test_only_a_language_model_has_stop_tokens(tmp_path):
    path = directory_with(tmp_path, generation="no JSON")
    assert from_pretrained(path).stop_tokens == ()
    assert from_config(LlamaConfig(eos_token_id=5), "CAUSAL_LM").stop_tokens == (5,)


@pytest.mark.parametrize(
    ("config", "generation", "message"),
    [
        ({}, "{", r"generation_config\.json: not a JSON file"),
        ({}, [1], r"generation_config\.json: expected a JSON object, found \[1\]"),
        ({}, {"eos_token_id": "</s>"}, r"generation_config\.json: field 'eos_token_id' is '</s>'"),
        ({}, {"eos_token_id": [2, True]}, "expected a token id, a list of them, or null"),
    ],
)
def test_damaged_files_are_refused(tmp_path, config, generation, message):
    path = directory_with(tmp_path, config, generation)
    with pytest.raises(ModelError, match=message):
        from_pretrained(path, "CAUSAL_LM")


@pytest.mark.parametrize("value", [2, "</s>", ["</s>"], [2.5], [[2]]])
def test_stop_tokens_that_are_no_list_of_ids(value):
    model = from_config(LLAMA, "CAUSAL_LM")
    with pytest.raises(
        ModelError, match=r"stop_tokens is .*; expected a list of token ids, or None"
    ):
        stream(model, model.params, PROMPT, max_new_tokens=2, stop_tokens=value)


def test_numbers_of_any_kind_and_of_any_container(free):
    model = from_pretrained(LLAMA, "CAUSAL_LM")
    stop = int(free[2])
    length = free.tolist().index(stop) + 1
    for stops in ([stop], (stop,), np.array([stop], np.int64), {stop}):
        assert generate(
            replace(model, stop_tokens=()),
            model.params,
            PROMPT,
            max_new_tokens=8,
            stop_tokens=stops,
        ).lengths.tolist() == [length]
