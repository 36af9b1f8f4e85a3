"""Runs of the command line: a tiny language model, its flags, and what two runs left."""

import shutil

import numpy as np

import lntune_jax as lnt
from lntune_jax.trainer.callbacks import read_metrics
from tests.support.checkpoints import REFERENCE

LENGTH = 16
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>"]
WORDS = [f"w{number}" for number in range(40)]
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} </s> "
    "{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
)
FLAGS = ("--task", "causal_lm", "--batch-size", "4", "--max-length", str(LENGTH))
FLAGS = (*FLAGS, "--learning-rate", "0.05")


def make_decoder(directory, template=TEMPLATE):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    shutil.copytree(REFERENCE / "decoders" / "llama", directory)
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=template,
    ).save_pretrained(directory)
    return directory


def check(outcome, *fragments):
    code, _, complaint = outcome
    assert code == 2
    assert complaint.count("\n") == 1
    for fragment in fragments:
        assert fragment in complaint


def same_adapter(left, right):
    one, config = lnt.load_adapter(left / "adapter")
    other, same_config = lnt.load_adapter(right / "adapter")
    assert config == same_config
    assert one.keys() == other.keys()
    return all(np.array_equal(np.asarray(one[path]), np.asarray(other[path])) for path in one)


def without_times(output):
    lines = read_metrics(output / "metrics.jsonl")
    for line in lines:
        line.pop("tokens_per_second", None)
    return lines


def leaves(directory):
    return {path: np.asarray(leaf) for path, leaf in lnt.load_adapter(directory).trainable.items()}
