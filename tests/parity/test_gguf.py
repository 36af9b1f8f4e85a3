"""Weights out of GGUF files, against what transformers' own loader makes of the same file."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GemmaTokenizer, GPT2Tokenizer

from lntune_jax.models import from_pretrained, tokenizer_from_gguf
from lntune_jax.models.families.names import TORCH_LEAVES
from lntune_jax.models.families.registry import FAMILIES
from tests.support.gguf_files import checkpoint, write
from tests.support.gguf_tokenizers import TEXTS, gemma, gpt2

# transformers 5.23 reads no file of the architectures "gemma" and "olmo2"; it takes a llama's
# window for none, and passes over what turns and what is seen in a Phi-3.
NAMES = ["gemma2", "gemma3_text", "gpt2_untied", "mistral", "phi3"]
TOKENS = np.arange(4, 28).reshape(2, 12)


def words(writer):
    """A vocabulary, from which transformers reads its size."""
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"word{index}" for index in range(60)])
    writer.add_pad_token_id(0)  # A Phi-3 without one has an id beyond this vocabulary.


@pytest.mark.parametrize("name", NAMES)
def test_the_same_weights(tmp_path, name):
    config, tensors = checkpoint(name)
    config |= {"sliding_window": None} if name == "mistral" else {}
    if config["model_type"] == "gpt2":
        # transformers keeps its default, whatever the file says.
        config["n_positions"] = 1024
        table = np.random.default_rng(0).normal(size=(1024, config["n_embd"]))
        tensors["transformer.wpe.weight"] = table.astype(np.float32)
    path = write(tmp_path / "model.gguf", config, tensors, tokenizer=words)
    model = from_pretrained(path, "CAUSAL_LM")
    torch_model = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    )
    expected = torch_model.state_dict()
    layout = FAMILIES[model.settings.model_type].checkpoint_names
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
        names = tuple(key.key for key in path)
        key = ".".join((*names[:-1], TORCH_LEAVES[names[-1]]))
        array = leaf.T if layout.transposed(names) else leaf
        np.testing.assert_array_equal(array, expected.pop(key).numpy(), err_msg=key)
    # What is left are ties.
    assert set(expected) <= {"lm_head.weight"}
    if name in ("gpt2_untied", "mistral"):
        logits = torch_model(torch.as_tensor(TOKENS)).logits.detach().numpy()
        np.testing.assert_allclose(model.apply(model.params, TOKENS).logits, logits, atol=2e-5)


KINDS = [
    ("gemma", gemma, GemmaTokenizer),
    ("gemma2", gemma, GemmaTokenizer),
    ("gemma3_text", gemma, GemmaTokenizer),
    ("gpt2", gpt2, GPT2Tokenizer),
]


# One name of each way that transformers knows.
SPLITS = ["llama-bpe", "tekken", "qwen2", "qwen35", "gpt-4o"]


@pytest.mark.parametrize(
    ("name", "add", "theirs"),
    [
        *KINDS,
        *(("gpt2", functools.partial(gpt2, split=split), GPT2Tokenizer) for split in SPLITS),
    ],
)
def test_the_same_tokens(tmp_path, name, add, theirs):
    path = write(tmp_path / "model.gguf", *checkpoint(name), tokenizer=add)
    found = tokenizer_from_gguf(path)
    expected = theirs.from_pretrained(tmp_path, gguf_file=path.name)
    for text in TEXTS:
        ids = expected(text)["input_ids"]
        assert found(text)["input_ids"] == ids, text
        for skipped in (True, False):
            text = found.decode(ids, skip_special_tokens=skipped)
            assert text == expected.decode(ids, skip_special_tokens=skipped)
    for token in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(found, token) == getattr(expected, token)
