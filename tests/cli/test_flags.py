from dataclasses import asdict

import pytest

from lntune_jax.cli.app import COMMANDS
from lntune_jax.cli.flags import find_flags, list_flags, make_settings, read_words
from lntune_jax.cli.options import CompareSettings, InspectSettings, TrainSettings
from lntune_jax.errors import ConfigError

TRAIN = ["--model", "M", "--data", "D", "--output", "O"]


def parse(words, settings=TrainSettings):
    return make_settings(settings, read_words(words, settings))


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--batch_size", "3"], "batch_size", 3),
        (["--batch-size=3"], "batch_size", 3),
        (["--batch-size", "3", "--batch-size", "4"], "batch_size", 4),
        (["--learning-rate", "-1e-3"], "learning_rate", -1e-3),
        (["--targets", "a", "b", "--dropout"], "targets", ("a", "b")),
        (["--targets", "a", "--targets=b"], "targets", ("a", "b")),
        (["--text-column", "- a text"], "text_column", "- a text"),
        (["--text-column="], "text_column", ""),
        (["--task", "CAUSAL_LM"], "task", "causal_lm"),
        (["--task", "Seq-Cls"], "task", "seq_cls"),
        ([], "dropout", False),
    ],
)
def test_what_words_mean(words, field, value):
    settings = parse([*TRAIN, *words])
    whole = {}
    for name, each in asdict(settings).items():
        whole |= each if isinstance(each, dict) else {name: each}
    assert whole[field] == value


@pytest.mark.parametrize("task", ["seq_cls", "SEQ_CLS", "causal_lm", "CAUSAL_LM", "Causal-LM"])
@pytest.mark.parametrize(
    "command", [name for name, each in COMMANDS.items() if "task" in find_flags(each.settings)]
)
def test_a_task_has_the_same_names_in_every_command(command, task):
    settings = COMMANDS[command].settings
    positional = ["a" for flag in list_flags(settings) if flag.shown.is_positional]
    flags = [
        word
        for flag in list_flags(settings)
        if flag.is_required and not flag.shown.is_positional
        for word in (flag.written, "x")
    ]
    found = parse([*positional, *flags, "--task", task], settings)
    assert found.task == task.lower().replace("-", "_")


def test_positional_values_may_be_given_by_flag():
    assert parse(["m", "--trace"], InspectSettings).model == "m"
    assert parse(["--trace", "--model", "m"], InspectSettings).model == "m"
    found = parse(["a", "b", "--model", "m"], CompareSettings)
    assert [str(path) for path in found.adapters] == ["a", "b"]
    assert found == parse(["--model", "m", "--adapter", "a", "--adapter", "b"], CompareSettings)
    assert str(parse(["--model", "m", "--", "-a"], CompareSettings).adapters[0]) == "-a"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--modle", "x"], r"^unknown flag --modle \(did you mean --model\?\)$"),
        (["--lerning-rate=1"], r"^unknown flag --lerning-rate \(did you mean --learning-rate\?\)$"),
        (["--zzz", "--qqq"], r"^unknown flags --zzz, --qqq$"),
        (["-model", "x"], r"^unknown flag -model \(did you mean --model\?\)$"),
        (["--batch-size", "--zzz"], "^unknown flag --zzz$"),
        ([], "^missing --model, --data and --output$"),
        (["--model", "a", "--data", "b"], "^missing --output$"),
        (
            ["--max-length", "9", "--max-seq-length", "8"],
            "^--max-length and --max-seq-length are the",
        ),
        ([*TRAIN, "a"], "^'a' belongs to no flag$"),
        ([*TRAIN, "--dropout", "true"], "^'true' belongs to no flag$"),
        ([*TRAIN, "--dropout=true"], "^--dropout takes no value"),
        (["--batch-size"], "^--batch-size needs a value$"),
        (["--targets", "--dropout"], "^--targets needs a value$"),
        ([*TRAIN, "--batch-size", "1.5"], "^--batch-size is '1.5'; it must be a whole number$"),
        ([*TRAIN, "--eval-fraction", "a"], "^--eval-fraction is 'a'; it must be a number$"),
        ([*TRAIN, "--task", "seqcls"], r"'seqcls' \(did you mean 'seq_cls'\?\); it must be one of"),
    ],
)
def test_what_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        parse(words)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_name_stands_for_two_flags(command):
    flags = list(list_flags(COMMANDS[command].settings))
    names = [name for flag in flags for name in (flag.written, *flag.shown.also)]
    assert len(names) == len(set(names))
    assert all(name == name.lower().replace("_", "-") for name in names)
