"""`demo --task causal_lm`, on a tiny model of the real one's kind: GGUF, tokenizer inside."""

import json
import sys

import gguf
import numpy as np
import pytest

from lntune_jax.cli import demo
from lntune_jax.cli.demo import draw, find_language_model
from lntune_jax.models.families.gguf import LAYER_MODULES, MODULES

WIDTH, WIDE, LAYERS = 16, 32, 2
# A character for each byte, as in GPT-2's vocabulary.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
REST = [byte for byte in range(256) if byte not in PRINTABLE]
TOKENS = [chr(byte) for byte in PRINTABLE] + [chr(256 + place) for place in range(len(REST))]
LENGTHS = {"block_count": LAYERS, "embedding_length": WIDTH, "feed_forward_length": WIDE}
LENGTHS |= {"context_length": 256, "attention.head_count": 2, "attention.head_count_kv": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in LENGTHS.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*TOKENS, "th", "<end>"])
    writer.add_token_types([1] * (len(TOKENS) + 1) + [3])
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(len(TOKENS) + 1)
    random = np.random.default_rng(0)
    shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH // 2, WIDTH)}
    shapes |= {"attn_v": (WIDTH // 2, WIDTH), "attn_output": (WIDTH, WIDTH)}
    shapes |= dict.fromkeys(("ffn_gate", "ffn_up"), (WIDE, WIDTH))
    shapes |= {"ffn_down": (WIDTH, WIDE), "token_embd": (len(TOKENS) + 2, WIDTH)}
    shapes |= dict.fromkeys(("attn_norm", "ffn_norm", "output_norm"), (WIDTH,))
    assert set(shapes) <= {*MODULES, *LAYER_MODULES}
    for name, shape in shapes.items():
        places = [f"{name}.weight"]
        if name in LAYER_MODULES:
            places = [f"blk.{layer}.{name}.weight" for layer in range(LAYERS)]
        for place in places:
            values = random.normal(size=shape) * 0.3 + (len(shape) == 1)
            writer.add_tensor(place, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_reviews_are_different_and_the_model_is_there():
    assert find_language_model().suffix == ".gguf"
    parts = draw("imdb", "", 30, 5, 5)
    assert [len(part) for part in parts] == [30, 5, 5]
    everything = [text for part in parts for text in part]
    assert len(set(everything)) == 40
    assert not any("<br" in text for text in everything)
    assert list(draw("imdb", "", 3, 5)[0]) == list(parts[0])[:3]


def test_a_short_demo_shows_three_precisions(run, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "find_language_model", lambda: tiny)
    monkeypatch.setattr(sys, "argv", ["/somewhere/lntune_jax/__main__.py"])
    options = ("--task", "causal_lm", "--steps", "6", "--output", tmp_path)
    code, printed, complaint = run("demo", *options, "--learning-rate", "1.5e-3")
    assert (code, complaint) == (0, "")
    fragments = ("bfloat16, norms float32", "perplexity after", "test loss identical")
    for fragment in (
        *fragments,
        "before: This film",
        "after: This film",
        "try it: python -m lntune_jax gen",
    ):
        assert fragment in printed
    (moved,) = (line for line in printed.splitlines() if "entries that moved" in line)
    shares = [int(cell.strip(" %")) for cell in moved.split("│")[2:5]]
    # The steps on a bfloat16 number near 1 round to nothing.
    assert shares[0] == shares[1] == 100
    assert shares[2] < 10
    assert (tmp_path / "demo-causal-lm.png").read_bytes().startswith(b"\x89PNG")
    directory = tmp_path / "causal-lm-bfloat16-norms-float32-seed-0"
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["trainable"] == WIDTH * (2 * LAYERS + 1)
    reviews = tmp_path / "reviews.jsonl"
    reviews.write_text(json.dumps({"text": "a film about nothing"}))
    code, printed, _ = run("evaluate", "--run", directory, "--data", reviews)
    assert code == 0
    assert "perplexity" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "causal_lm", "--full"], "--full goes with --task seq_cls"),
        (["--learning-rate", "1e-3"], "--learning-rate goes with --task causal_lm"),
        (["--seeds"], "--seeds needs a value"),
    ],
)
def test_flags_that_do_not_go_together(run, flags, message):
    code, _, complaint = run("demo", *flags)
    assert code == 2
    assert message in complaint
