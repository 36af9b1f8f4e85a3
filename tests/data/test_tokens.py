"""Token ids beside transformers' own, and rows that begin with what the tokenizer puts first."""

from pathlib import Path

import numpy as np
import pytest

import lntune_jax as lnt
from lntune_jax.cli.language_model import LanguageModel
from lntune_jax.data.documents import Documents
from lntune_jax.data.packing import fit_length, pack, separate
from lntune_jax.data.tokens import IGNORED, Encoded, encode_documents, first_tokens
from lntune_jax.errors import ConfigError
from lntune_jax.models import from_pretrained
from lntune_jax.tasks.causal_lm import MeanLoss
from tests.support.chats import CHATML, LLAMA, MARKED, QWEN, make_tokenizer, turns
from tests.support.decoders import REFERENCE

BOS, EOS = 1, 2
KINDS = [(begins, ends) for begins in (False, True) for ends in (False, True)]
TEXTS = ("hi", "yes. no", "é 日本 🚀\n\n", " hi", "<bos>hi", "hi<eos>")


def documents_of(form, *values):
    return Documents(Path("data.jsonl"), form, values, tuple(range(1, len(values) + 1)))


def encode(tokenizer, form, *values):
    return encode_documents(tokenizer, documents_of(form, *values), len(tokenizer))


def language_model(tokenizer):
    return LanguageModel(None, None, tokenizer, ())


@pytest.mark.parametrize(("begins", "ends"), KINDS)
def test_what_a_tokenizer_puts_first(begins, ends):
    assert first_tokens(make_tokenizer(begins=begins, ends=ends)) == [BOS] * begins


def test_what_a_tokenizer_of_few_letters_puts_first():
    from tokenizers import Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({"<bos>": 0, "<eos>": 1, "q": 2}, []))
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>"
    )
    assert first_tokens(tokenizer) == [0]


@pytest.mark.parametrize("text", [*TEXTS, ""])
@pytest.mark.parametrize("begins", [False, True])
def test_a_prompt_is_as_transformers_has_it(begins, text):
    tokenizer = make_tokenizer(begins=begins)
    theirs = tokenizer(text)["input_ids"]
    assert language_model(tokenizer).prompt_tokens(text, chat=False) == theirs


@pytest.mark.parametrize("begins", [False, True])
def test_a_prompt_has_no_end(begins):
    """Where the tokenizer adds one: behind it a model would begin another text."""
    tokenizer = make_tokenizer(begins=begins, ends=True)
    for text in TEXTS:
        theirs = tokenizer(text)["input_ids"]
        assert theirs[-1] == EOS
        assert language_model(tokenizer).prompt_tokens(text, chat=False) == theirs[:-1]


@pytest.mark.parametrize("template", [CHATML, LLAMA, QWEN, MARKED])
@pytest.mark.parametrize("text", [*TEXTS, "", "\nhi"])
def test_a_question_is_as_transformers_has_it(template, text):
    # The template alone writes special tokens, also where the tokenizer would.
    tokenizer = make_tokenizer(template, begins=True, ends=True)
    theirs = tokenizer.apply_chat_template(turns(text), add_generation_prompt=True)["input_ids"]
    assert language_model(tokenizer).prompt_tokens(text, chat=True) == theirs


@pytest.mark.parametrize(("begins", "ends"), KINDS)
def test_a_text_ends_once_and_is_predicted_but_for_what_comes_first(begins, ends):
    tokenizer = make_tokenizer(begins=begins, ends=ends)
    for text, each in zip(TEXTS, encode(tokenizer, "text", *TEXTS), strict=True):
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = [BOS] * begins + plain + [EOS] * (plain[-1] != EOS)
        assert each.tokens.tolist() == whole
        assert each.labels.tolist() == [IGNORED, *whole[1:]]


@pytest.mark.parametrize(("begins", "ends"), KINDS)
@pytest.mark.parametrize("prompt", ["hi ", "", "hi<eos>"])
def test_a_completion_follows_the_prompt_that_generate_gives(begins, ends, prompt):
    tokenizer = make_tokenizer(begins=begins, ends=ends)
    (each,) = encode(tokenizer, "completion", (prompt, "yes"))
    before = language_model(tokenizer).prompt_tokens(prompt, chat=False)
    own = [*tokenizer("yes", add_special_tokens=False)["input_ids"], EOS]
    assert each.tokens.tolist() == before + own
    # Without a prompt and a first token nothing predicts the completion's first.
    assert (
        each.labels.tolist() == [IGNORED] * len(before) + [own[0] if before else IGNORED] + own[1:]
    )


@pytest.mark.parametrize("template", [CHATML, LLAMA, QWEN, MARKED])
def test_a_chat_is_as_transformers_has_it(template):
    tokenizer = make_tokenizer(template, begins=True, ends=True)
    messages = turns("hi", "\nyes", "hi", "no")
    (each,) = encode(tokenizer, "messages", messages)
    assert each.tokens.tolist() == tokenizer.apply_chat_template(messages)["input_ids"]
    # The answers follow what `generate --chat` is given.
    start = np.flatnonzero(each.labels != IGNORED)[-1]
    asked = tokenizer.apply_chat_template(messages[:3], add_generation_prompt=True)["input_ids"]
    assert each.tokens[: len(asked)].tolist() == asked
    assert len(asked) <= start


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("length", [2, 5, 8, 16, 64])
def test_every_part_of_a_text_begins_as_a_text_does(begins, length):
    tokenizer = make_tokenizer(begins=begins)
    texts = ["hi " * count for count in range(1, 20)]
    encoded = encode(tokenizer, "text", *texts)
    fitting = fit_length(encoded, "text", length)
    assert fitting.split == sum(len(each.tokens) > length for each in encoded)
    assert (fitting.cut, fitting.dropped) == (0, 0)
    for whole in encoded:
        parts = [part for part in fitting.parts if part.number == whole.number]
        assert max(len(part.tokens) for part in parts) <= length
        # A document that fits is one part.
        assert (len(parts) == 1) == (len(whole.tokens) <= length)
        if begins:
            assert {int(part.tokens[0]) for part in parts} == {BOS}
        predicted = np.concatenate([part.labels[part.labels != IGNORED] for part in parts])
        assert predicted.tolist() == whole.labels[1:].tolist()


def test_every_segment_of_a_packed_row_begins_as_a_text_does():
    tokenizer = make_tokenizer(begins=True)
    encoded = encode(tokenizer, "text", *("hi " * count for count in range(1, 20)))
    rows = pack(fit_length(encoded, "text", 16).parts, 16)
    for tokens, labels, segments in zip(rows.tokens, rows.labels, rows.segments, strict=True):
        starts = np.flatnonzero(np.diff(segments, prepend=0))
        assert (tokens == BOS).nonzero()[0].tolist() == starts.tolist()
        assert (labels == IGNORED).nonzero()[0].tolist() == starts.tolist()


def test_a_row_must_hold_more_than_the_first_token():
    encoded = encode(make_tokenizer(begins=True), "text", "hi hi hi")
    with pytest.raises(ConfigError, match="--max-length 1 has no room"):
        fit_length(encoded, "text", 1)


def test_the_perplexity_of_a_long_text_is_that_of_texts_with_a_first_token():
    """A Gemma of random weights: each part of a text costs what it costs as a text of its own."""
    model = from_pretrained(REFERENCE / "gemma", task="CAUSAL_LM")
    generator = np.random.default_rng(0)
    whole = np.concatenate([[BOS], generator.integers(3, 60, 40)]).astype(np.int32)
    labels = np.where(np.arange(41) > 0, whole, IGNORED)
    parts = fit_length([Encoded(whole, labels, 1, first=1)], "text", 11).parts
    assert [len(part.tokens) for part in parts] == [11] * 4
    halves = lnt.partition_params(model.params, lnt.LNTuningConfig())
    losses = MeanLoss(model)
    costs = []
    for rows in (pack(parts, 16), separate(parts)):
        costs.append(losses.measure(*halves, rows, 2, (16,), 0))
    expected = []
    for start in range(1, 41, 10):
        row = np.concatenate([[BOS], whole[start : start + 10]])
        logits = np.asarray(model.apply(model.params, row[None]).logits[0], np.float64)
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected += [-logs[place, row[place + 1]] for place in range(10)]
    assert np.allclose(costs, np.mean(expected), atol=1e-5)
    # And what a row without its first token would say is something else.
    bare = [Encoded(part.tokens[1:], part.labels[1:].copy(), 1) for part in parts]
    for part in bare:
        part.labels[0] = IGNORED
    assert abs(losses.measure(*halves, separate(bare), 2, (16,), 0) - costs[0]) > 0.1
