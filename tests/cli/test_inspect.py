"""What `inspect` prints: folded layers, every leaf on request, lines of 80 columns."""

import pytest

from tests.support.paths import REFERENCE

DECODERS = REFERENCE / "decoders"


def inspect(run, directory, *flags):
    code, printed, complaint = run("inspect", directory, *flags)
    assert code == 0, complaint
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 80
    return lines


def test_layers_share_a_line_and_the_task_is_said(run):
    lines = inspect(run, DECODERS / "llama")
    assert lines[0] == "llama, as a language model (task CAUSAL_LM)"
    assert [line.split()[0] for line in lines[3:6]] == [
        "model.layers.{0,1}.input_layernorm.scale",
        "model.layers.{0,1}.post_attention_layernorm.scale",
        "model.norm.scale",
    ]
    assert len(lines) == 8
    classes = inspect(run, REFERENCE / "bert", "--num-labels", "3")
    assert classes[0] == "bert, as a classifier of 3 classes (task SEQ_CLS)"
    assert "trained whole: classifier" in classes
    assert (
        inspect(run, REFERENCE / "bert", "--task", "none")[0] == "bert, without a head (task none)"
    )


def test_all_lists_every_leaf(run):
    lines = inspect(run, DECODERS / "llama", "--all")
    leaves = {line.split()[0]: line.split()[-1] for line in lines[3:-2]}
    assert leaves["model.layers.1.input_layernorm.scale"] == "norm"
    assert leaves["model.layers.1.mlp.up_proj.kernel"] == "frozen"


@pytest.mark.parametrize("name", ["gemma3_text", "gpt2", "phi3"])
def test_the_memory_of_small_models_is_in_mb(run, name):
    lines = inspect(run, DECODERS / name, "--length", "16", "--quantize", "int8", "--trace")
    assert "memory of a step on each device, in MB:" in lines
    rows = {line.split()[0]: line.split()[1:] for line in lines[-6:]}
    assert "gathered" not in rows
    assert float(rows["total"][0]) > 0


def test_lora_is_left_out_where_it_has_nothing_to_train(run):
    assert "LoRA" not in " ".join(inspect(run, REFERENCE / "modernbert", "--length", "8"))
    assert "LoRA" in " ".join(inspect(run, REFERENCE / "bert", "--length", "8"))
