"""A tiny random BERT with a tokenizer, tables whose labels follow from a word, and runs.

Fixtures: a conftest imports those that its folder needs.
"""

import json
import os
import random

import numpy as np
import pytest
from safetensors.numpy import save_file

from lntune_jax.cli import main

# Whichever test imports transformers first must not find its greeting in what it looks at.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

WORDS = [f"word{number}" for number in range(20)]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", *WORDS]
WIDTH, INNER, LAYERS, POSITIONS = 16, 32, 2, 40


@pytest.fixture(autouse=True)
def _strict_promotion():
    """Not here: Optax's Adam and schedules mix integers and floats, which strict refuses."""


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory):
    """A checkpoint as transformers writes it, without a pooler."""
    directory = tmp_path_factory.mktemp("tiny-bert")
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": len(VOCABULARY),
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    save_file(_weights(), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="session")
def table(tmp_path_factory, make_rows):
    """60 rows of 2 to 30 words; every other word gives the label away."""
    path = tmp_path_factory.mktemp("tables") / "reviews.csv"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in make_rows(60)))
    return path


@pytest.fixture(scope="session")
def make_rows():
    """Draw texts and labels: `make_rows(count, seed)`."""
    return _make_rows


@pytest.fixture
def run(capsys):
    """Call the command line: exit code, what it printed, what it complained.

    `run.notes` is what else the last call wrote to standard error: notes and progress.
    """

    def call(*words):
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        lines = printed.err.splitlines(keepends=True)
        is_complaint = [line.startswith(("lntune-jax: ", "  ")) for line in lines]
        pairs = list(zip(lines, is_complaint, strict=True))
        call.notes = "".join(line for line, complains in pairs if not complains)
        return code, printed.out, "".join(line for line, complains in pairs if complains)

    return call


@pytest.fixture(scope="session")
def make_run(tmp_path_factory, model_directory, table):
    """Train for two steps, once for each pooling: `make_run(pooling)`."""
    from lntune_jax.cli import main

    runs = {}

    def make(pooling):
        if pooling not in runs:
            runs[pooling] = tmp_path_factory.mktemp("runs") / pooling
            words = ["train", "--model", model_directory, "--data", table, "--max-steps", 2]
            words += ["--output", runs[pooling], "--pooling", pooling, "--buckets", 1]
            assert main([str(word) for word in words]) == 0
        return runs[pooling]

    return make


def _make_rows(count, seed=0):
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        label = ("neg", "pos")[number % 2]
        words = draw.choices(WORDS, k=draw.randint(2, 30))
        for position in range(0, len(words), 2):
            words[position] = "good" if label == "pos" else "bad"
        rows.append((" ".join(words), label))
    return rows


def _weights():
    generator = np.random.default_rng(0)

    def normal(*shape):
        return generator.normal(0, 0.3, shape).astype(np.float32)

    weights = {
        "embeddings.word_embeddings.weight": normal(len(VOCABULARY), WIDTH),
        "embeddings.position_embeddings.weight": normal(POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": normal(2, WIDTH),
        **_norm("embeddings.LayerNorm"),
    }
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}"
        for name, out, inner in (
            ("attention.self.query", WIDTH, WIDTH),
            ("attention.self.key", WIDTH, WIDTH),
            ("attention.self.value", WIDTH, WIDTH),
            ("attention.output.dense", WIDTH, WIDTH),
            ("intermediate.dense", INNER, WIDTH),
            ("output.dense", WIDTH, INNER),
        ):
            weights[f"{prefix}.{name}.weight"] = normal(out, inner)
            weights[f"{prefix}.{name}.bias"] = normal(out)
        weights |= _norm(f"{prefix}.attention.output.LayerNorm")
        weights |= _norm(f"{prefix}.output.LayerNorm")
    return weights


def _norm(name):
    return {
        f"{name}.weight": np.ones(WIDTH, np.float32),
        f"{name}.bias": np.zeros(WIDTH, np.float32),
    }
