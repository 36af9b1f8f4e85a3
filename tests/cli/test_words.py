"""The library's messages name arguments, and each command writes its own flags for them."""

import ast
import pickle
import re
from pathlib import Path

import pytest

import lntune_jax as lnt
from lntune_jax.cli.app import COMMANDS
from lntune_jax.cli.flags import find_flags
from lntune_jax.cli.words import flag_spelling
from lntune_jax.errors import AdapterError, ConfigError
from lntune_jax.messages import Advice, Argument

PACKAGE = Path(lnt.__file__).parent
# Said to Python's callers only: the command line has no flag for these, and leaves advice about
# them out. The fields of a config are written as they stand in its file.
ONLY_IN_PYTHON = {"norms", "cast", "model_type", "frozen_layers", "attention", "remat", "trials"}

AS_IN_PYTHON = re.compile(
    r"=(True|False)|\b(target_modules|exclude_modules|modules_to_save|name_map|best_by|new_head"
    r"|on_nan|clip_norm|norms_only|scan_layers|max_new_tokens|save_modules|more_data)\b"
)
NOT_FOR_COMMANDS = {"bank", "cli", "discovery", "integrations", "training"}


def calls(name):
    """Each call of `Argument` or `Advice` in the package, with the file that it is in."""
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == name:
                yield file, node


def named():
    first = ((file, node.args[0]) for file, node in calls("Argument"))
    return {(file, arg.value) for file, arg in first if isinstance(arg, ast.Constant)}


def test_every_argument_that_a_message_names_has_a_flag_or_is_of_python_only():
    names = {name for _, name in named()}
    assert {"target_modules", "overwrite", "name_map", "base", "norms"} <= names
    known = [flag_spelling(command.settings) for command in COMMANDS.values()]
    without = {name for name in names if not any(spell(Argument(name)) for spell in known)}
    assert without <= ONLY_IN_PYTHON


def test_no_message_writes_an_argument_that_has_a_flag_as_text():
    """As `overwrite=True` in a string, which the command line would print as it is."""
    flags = {name for each in COMMANDS.values() for name in find_flags(each.settings)}
    known = {name.replace("-", "_") for name in flags} | {"base"}
    told = re.compile(r"(?<![\w.])({})=".format("|".join(sorted(known, key=len, reverse=True))))
    found = []
    for file in PACKAGE.rglob("*.py"):
        if file.relative_to(PACKAGE).parts[0] in NOT_FOR_COMMANDS:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            is_raised = isinstance(node, ast.Raise) and node.exc is not None
            is_warned = isinstance(node, ast.Call) and getattr(node.func, "id", None) == "warn"
            if not (is_raised or is_warned):
                continue
            for part in ast.walk(node):
                text = part.value if isinstance(part, ast.Constant) else None
                if isinstance(text, str) and " " in text and told.search(text):
                    found.append(f"{file.relative_to(PACKAGE)}:{part.lineno}: {text}")
    assert found == []


@pytest.mark.parametrize(
    ("command", "argument", "flag"),
    [
        ("train", Argument("modules_to_save"), "--save-modules"),
        ("train", Argument("target_modules", []), "--targets none"),
        ("train", Argument("clip_norm", 1), "--clip-norm 1"),
        ("train", Argument("scan_layers", False), "no --scan-layers"),
        ("inspect", Argument("exclude_modules", ["a", "b"]), "--exclude a b"),
        ("merge", Argument("norms_only", True), "--norms-only"),
        ("convert", Argument("base"), "--model"),
        ("convert", Argument("name_map", "tunix"), "--name-map tunix"),
        ("generate", Argument("max_new_tokens"), "--max-new-tokens"),
        ("evaluate", Argument("pooling"), "--pooling"),
        ("predict", Argument("text_column"), "--text-column"),
        ("compare", Argument("name_map"), "--name-map"),
        ("demo", Argument("learning_rate"), "--learning-rate"),
    ],
)
def test_each_command_writes_its_own_flag(command, argument, flag):
    assert flag_spelling(COMMANDS[command].settings)(argument) == flag


def test_advice_is_left_out_where_its_argument_has_no_flag():
    advice = Advice((", and a ", Argument("name_map")))
    error = AdapterError("the adapter a does not fit: pass its model", advice)
    assert str(error) == "the adapter a does not fit: pass its model, and a name_map"
    assert error.say(flag_spelling(COMMANDS["compare"].settings)).endswith(", and a --name-map")
    assert error.say(flag_spelling(COMMANDS["evaluate"].settings)).endswith("pass its model")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.args) == (str(error), error.args)


def test_a_name_from_a_file_is_no_argument():
    """Substitution by pattern would make flags of it."""
    error = ConfigError("out/overwrite=True holds target_modules; pass ", Argument("overwrite"))
    said = error.say(flag_spelling(COMMANDS["train"].settings))
    assert said == "out/overwrite=True holds target_modules; pass --overwrite"


@pytest.mark.filterwarnings("default")  # The command line prints warnings.
def test_a_message_of_each_command_names_its_flags(run, table, model_directory, tmp_path):
    """Made by the library, which knows no flags."""
    model, adapter, there = str(model_directory), tmp_path / "adapter", tmp_path / "there"
    there.mkdir()
    (there / "mine.txt").write_text("mine")
    params = lnt.models.from_pretrained(model).params
    trainable, _ = lnt.partition_params(params, lnt.LNTuningConfig())
    lnt.save_adapter(adapter, trainable, lnt.LNTuningConfig(), base=params)
    train = ("train", "--model", model, "--data", table, "--output", tmp_path / "out")
    for words, said in (
        ((*train, "--resume", "--overwrite"), "--resume and --overwrite contradict"),
        ((*train, "--targets", "classifier"), "To train a whole module put it into --save-modules"),
        ((*train, "--best-by", "speed"), "--best-by is 'speed'"),
        ((*train, "--sweep", "seed=1,2"), "--sweep 'seed=1,2' must be NAME=VALUE"),
        ((*train, "--scan-layers"), "--scan-layers is given, which bert does not have"),
        (("inspect", model, "--targets", "nothing"), "Change --targets or --exclude"),
        (("convert", adapter, there), "or --overwrite to replace the PEFT"),
        (("merge", "--adapter", adapter, "--model", model, "--output", there), "--overwrite"),
        (("compare", adapter, "--model", model, "--name-map", "no"), "--name-map no is not known"),
    ):
        code, _, complaint = run(*words)
        assert code == 2, complaint
        assert said in complaint.splitlines()[-1]
        assert not AS_IN_PYTHON.search(complaint)
