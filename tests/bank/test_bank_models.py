"""Mixed batches in the built-in models: norm parameters with a batch axis, the cache included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax import bank as banks
from lntune_jax.errors import ModelError
from lntune_jax.models import empty_cache, from_pretrained, generate, stream
from tests.support.banks import make_adapter
from tests.support.checkpoints import REFERENCE
from tests.support.programs import list_dots

MODELS = (
    ("bert_masked_lm", "MASKED_LM", False),
    ("decoders/gpt2", "CAUSAL_LM", False),
    ("decoders/gemma3_text", "CAUSAL_LM", False),
    ("decoders/olmo2", "CAUSAL_LM", False),
    ("decoders/phi3", "CAUSAL_LM", False),
    # Its layers are stacked, and there are as many as rows in the batch.
    ("decoders/gemma2", "CAUSAL_LM", True),
)
MIX = ["c", "base", "a", "a"]
TOKENS = np.random.default_rng(0).integers(5, 30, (4, 7)).astype(np.int32)
MASK = np.array([[1] * 7, [1] * 7, [0, 0] + [1] * 5, [1] * 7], np.int32)


@pytest.fixture(scope="module", params=MODELS)
def loaded(request):
    """A model, its bank, the frozen half, and what each row gives alone."""
    name, task, scan = request.param
    model = from_pretrained(REFERENCE / name, task=task, scan_layers=scan)
    adapters = {name: make_adapter(model.params, seed) for seed, name in enumerate("abc")}
    bank = banks.make_bank(model.params, adapters)
    frozen = banks.freeze_base(model.params, bank)
    run = jax.jit(model.apply)
    alone = [
        run(lnt.merge_params(banks.take_rows(bank, name), frozen), TOKENS[i : i + 1], MASK[i:][:1])
        for i, name in enumerate(MIX)
    ]
    return model, bank, frozen, np.concatenate([output.last_hidden_state for output in alone])


def test_equal_to_one_by_one_in_one_program_with_the_same_matmuls(loaded):
    model, bank, frozen, expected = loaded

    def native(leaves, ids, frozen, tokens, mask):
        return model.apply(banks.merge_rows(banks.take_rows(leaves, ids), frozen), tokens, mask)

    def mapped(leaves, ids, frozen, tokens, mask):
        return banks.apply_per_example(
            model.apply, leaves, ids, frozen, tokens, attention_mask=mask
        )

    def single(row, frozen, tokens, mask):
        return model.apply(lnt.merge_params(row, frozen), tokens, mask)

    dots = list_dots(single, banks.take_rows(bank, "a"), frozen, TOKENS, MASK)
    assert len(dots) > 9
    for mixed in (native, mapped):
        run = jax.jit(mixed)
        found = run(bank.leaves, bank.get_ids(MIX), frozen, TOKENS, MASK).last_hidden_state
        np.testing.assert_allclose(found, expected, atol=1e-5)
        ids = bank.get_ids(MIX[::-1])
        other = run(bank.leaves, ids, frozen, TOKENS, MASK).last_hidden_state
        assert np.abs(other - expected).max() > 0.1
        assert run._cache_size() == 1
        assert list_dots(mixed, bank.leaves, ids, frozen, TOKENS, MASK) == dots


@pytest.fixture(scope="module")
def decoder():
    """A model with norms of queries and keys too, its bank, and the frozen half."""
    model = from_pretrained(REFERENCE / "decoders" / "qwen3", task="CAUSAL_LM")
    adapters = {name: make_adapter(model.params, seed) for seed, name in enumerate("abc")}
    bank = banks.make_bank(model.params, adapters)
    return model, bank, banks.freeze_base(model.params, bank)


def test_generation_takes_each_row_s_adapter(decoder):
    model, bank, frozen = decoder
    options = {"max_new_tokens": 6}
    params = banks.merge_rows(banks.take_rows(bank, MIX), frozen)
    together = generate(model, params, TOKENS, MASK, **options).tokens
    columns = np.stack(list(stream(model, params, TOKENS, MASK, **options)), axis=1)
    assert np.array_equal(columns, together)
    for row, name in enumerate(MIX):
        one = lnt.merge_params(banks.take_rows(bank, name), frozen)
        part = slice(row, row + 1)
        alone = generate(model, one, TOKENS[part], MASK[part], **options).tokens
        assert np.array_equal(together[row], alone[0]), name
    assert len({tuple(row) for row in together}) > 1


def test_decoding_with_a_cache_is_one_program_for_every_mix(decoder):
    model, bank, frozen = decoder

    @jax.jit
    def step(leaves, ids, frozen, tokens, cache):
        params = banks.merge_rows(banks.take_rows(leaves, ids), frozen)
        return model.apply(params, tokens, cache=cache)

    def single(row, frozen, tokens, cache):
        return model.apply(lnt.merge_params(row, frozen), tokens, cache=cache)

    mixes, cache = (MIX, ["b"] * 4), empty_cache(model, 4, 16)
    arguments = frozen, TOKENS[:, :1], cache
    for names in mixes:
        ids, cache = bank.get_ids(names), empty_cache(model, 4, 16)
        rows = banks.take_rows(bank, ids)
        for column in range(4):
            output = step(bank.leaves, ids, frozen, TOKENS[:, column : column + 1], cache)
            cache = output.cache
        whole = jax.jit(model.apply)(banks.merge_rows(rows, frozen), TOKENS[:, :4])
        np.testing.assert_allclose(output.logits[:, 0], whole.logits[:, 3], atol=2e-5)
    assert step._cache_size() == 1
    dots = list_dots(single, banks.take_rows(bank, "a"), *arguments)
    assert list_dots(step, bank.leaves, bank.get_ids(MIX), *arguments) == dots


def test_vmap_takes_the_cache_too(decoder):
    model, bank, frozen = decoder
    cache, run = empty_cache(model, 4, 16), jax.jit(model.apply)
    native = run(banks.merge_rows(banks.take_rows(bank, MIX), frozen), TOKENS[:, :3], cache=cache)
    mapped = banks.apply_per_example(run, bank, MIX, frozen, TOKENS[:, :3], cache=cache)
    np.testing.assert_allclose(mapped.logits, native.logits, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), mapped.cache, native.cache
    )


def test_a_bfloat16_model_computes_each_row_as_alone():
    model = from_pretrained(REFERENCE / "decoders/llama", task="CAUSAL_LM", dtype="bfloat16")
    adapters = {name: make_adapter(model.params, seed) for seed, name in enumerate("abc")}
    bank = banks.make_bank(model.params, adapters)
    frozen, run = banks.freeze_base(model.params, bank), jax.jit(model.apply)
    found = run(banks.merge_rows(banks.take_rows(bank, MIX), frozen, cast=False), TOKENS).logits
    for row, name in enumerate(MIX):
        one = lnt.merge_params(banks.take_rows(bank, name), frozen, cast=False)
        expected = run(one, TOKENS[row : row + 1]).logits[0]
        np.testing.assert_allclose(found[row].astype("f"), expected.astype("f"), atol=0.03)


def test_what_the_native_path_refuses():
    model = from_pretrained(REFERENCE / "bert_seq_cls", task="SEQ_CLS")
    config = lnt.LNTuningConfig(modules_to_save=["classifier"])
    bank = banks.make_bank(model.params, {"a": make_adapter(model.params, 0, config)})
    frozen, names = banks.freeze_base(model.params, bank), ["a", "base", "a"]
    rows = banks.merge_rows(banks.take_rows(bank, names), frozen)
    message = r"params leaf classifier.\w+ has a batch axis: .*apply_per_example"
    with pytest.raises(ModelError, match=message):
        model.apply(rows, TOKENS[:3])
    # Through vmap it works: the head is one more batched product.
    run = jax.jit(model.apply)
    found = banks.apply_per_example(run, bank, names, frozen, TOKENS[:3]).logits
    for row, name in enumerate(names):
        one = lnt.merge_params(banks.take_rows(bank, name), frozen)
        expected = run(one, TOKENS[row : row + 1]).logits[0]
        np.testing.assert_allclose(found[row], expected, atol=1e-5)
    norms = banks.make_bank(model.params)
    params = banks.merge_rows(
        banks.take_rows(norms, [0, 0, 0]), banks.freeze_base(model.params, norms)
    )
    with pytest.raises(ModelError, match="norm parameters for 3 rows, and the batch has 4"):
        model.apply(params, TOKENS)
    params["classifier"]["kernel"] = jnp.ones((2, 3))
    with pytest.raises(ModelError, match=r"has the shape \(2, 3\); expected"):
        model.apply(params, TOKENS)
