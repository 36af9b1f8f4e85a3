import pytest

import lntune_jax as lnt
from lntune_jax.cli.app import _print_warning

TRAIN = ["train", "--model", "MODEL", "--data", "DATA", "--output", "OUT"]


def check(outcome, *fragments):
    code, _, complaint = outcome
    assert code == 2
    assert complaint.startswith("lntune-jax: error: ")
    assert complaint.count("\n") == 1
    assert "Traceback" not in complaint
    for fragment in fragments:
        assert fragment in complaint


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["trian"], ["trian", "did you mean train?", "see lntune-jax --help"]),
        (["--modle"], ["unknown flag --modle", "see lntune-jax --help"]),
        (["train"], ["--model", "--data", "--output", "see lntune-jax train --help"]),
        ([*TRAIN, "--bach-size", "3"], ["unknown flag --bach-size (did you mean --batch-size?)"]),
        ([*TRAIN, "--batch-size", "many"], ["--batch-size", "'many'"]),
        ([*TRAIN, "--schedule", "square"], ["'square'", "'linear', 'cosine', 'constant'"]),
        ([*TRAIN, "--batch-size", "0"], ["--batch-size is 0", "1 or more"]),
        ([*TRAIN, "--eval-fraction", "1.5"], ["--eval-fraction is 1.5", "between 0 and 1"]),
        ([*TRAIN, "--learning-rate", "nan"], ["--learning-rate is nan"]),
        ([*TRAIN, "--seed", "-1"], ["--seed is -1"]),
        (["demo", "--seeds", "0", "-1"], ["--seeds"]),
        (["demo", "--seeds"], ["--seeds needs a value"]),
        (["predict", "--run", "nowhere", "--text", "a"], ["--run nowhere holds no adapter"]),
        (["predict", "--text", "a"], ["--run"]),
        (["predict", "--run", "a"], ["--text", "--data"]),
        (["predict", "--run", "a", "--text", "b", "--output", "c.txt"], [".jsonl or .csv"]),
        (["evaluate", "--data", "a.csv"], ["--run"]),
        (["inspect", "./nothing-here"], ["neither a directory nor a hub id"]),
    ],
)
def test_a_bad_command_line_is_one_line_and_exit_code_2(run, words, fragments):
    check(run(*words), *fragments)


def test_a_directory_that_is_no_model(run, table, tmp_path):
    words = ("--model", tmp_path, "--data", table, "--output", tmp_path / "out")
    check(run("train", *words), "is not a model directory", "no config.json")
    check(run("inspect", tmp_path), "is not a model directory")
    check(run("inspect", table), "is a file")


def test_a_damaged_config_or_tokenizer(run, table, tmp_path, model_directory):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    check(run("inspect", broken), "broken")
    for file in model_directory.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "tokenizer.json").write_text("{")
    words = ("--model", broken, "--data", table, "--output", tmp_path / "out")
    check(run("train", *words), "has no tokenizer that can be read")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        ("", ["is empty"]),
        ("text,label\n", ["no rows"]),
        ("review,label\na,b\n", ["no column 'text'", "'review', 'label'", "--text-column"]),
        ("text,labels\na,b\n", ["did you mean 'labels'", "--label-column"]),
        ("text,label\na,b\nc,b\n", ["a classifier needs two or more"]),
    ],
)
def test_a_faulty_table(run, tmp_path, model_directory, content, fragments):
    path = tmp_path / "data.csv"
    path.write_text(content)
    words = ("--model", model_directory, "--data", path, "--output", tmp_path / "out")
    check(run("train", *words), "data.csv", *fragments)
    assert not (tmp_path / "out").exists()


def test_flags_that_contradict_each_other(run, table, tmp_path, model_directory):
    words = ("train", "--model", model_directory, "--data", table, "--output", tmp_path / "out")
    check(run(*words, "--resume", "--overwrite"), "--resume and --overwrite")
    both = ("--eval-data", table, "--eval-fraction", "0.2")
    check(run(*words, *both), "--eval-data and --eval-fraction")


def test_an_unknown_label_in_the_evaluation_table(run, table, tmp_path, model_directory):
    other = tmp_path / "other.csv"
    other.write_text("text,label\ngood,pos\nso so,neutral\n")
    words = ("--model", model_directory, "--data", table, "--output", tmp_path / "out")
    outcome = run("train", *words, "--eval-data", other)
    check(outcome, "other.csv", "'neutral' in line 3", "'neg', 'pos'")


def test_ctrl_c_is_130(monkeypatch, capsys):
    from lntune_jax.cli import inspect, main

    def interrupt(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "run", interrupt)
    assert main(["inspect", "x"]) == 130
    assert capsys.readouterr().err == "lntune-jax: stopped\n"


def test_a_warning_is_printed_without_its_line_of_code(capsys):
    _print_warning(lambda _: None, UserWarning("two\nlines"), UserWarning, "file.py", 3)
    assert capsys.readouterr().err == "lntune-jax: warning: two lines\n"


@pytest.mark.filterwarnings("default")  # The command line prints warnings.
def test_a_mistyped_target_beside_a_head_is_an_error(run, table, tmp_path, model_directory):
    words = ("--model", model_directory, "--data", table, "--output", tmp_path / "out")
    words += ("--targets", "LayerNrom", "--save-modules", "classifier")
    code, printed, complaint = run("train", *words)
    warned, failed = complaint.splitlines()
    assert "'LayerNrom' matches no module" in warned
    check((code, printed, failed + "\n"), "no norm trains", "Change --targets or --exclude")
    near = failed.split("the nearest ")[1].split(". Change")[0]
    assert near.endswith("LayerNorm'")  # and no module that is no norm
    assert "pass --targets none" in failed
    assert not (tmp_path / "out" / "adapter").exists()


def test_no_norm_on_purpose(run, table, tmp_path, model_directory):
    code, printed, complaint = run("inspect", model_directory, "--targets", "none")
    assert (code, complaint) == (0, "")
    assert "classifier.kernel" in printed
    assert "LayerNorm" not in printed
    check(run("inspect", model_directory, "--targets", "none", "ln"), "none stands alone")
    check(
        run("inspect", model_directory, "--task", "none", "--targets", "none"),
        "with --targets none",
    )
    words = ("--model", model_directory, "--data", table, "--output", tmp_path / "out")
    idle = ("--targets", "none", "--sweep", "learning_rate=1e-3,1e-2")
    check(run("train", *words, *idle), "--sweep learning_rate changes nothing")
    code, printed, complaint = run("train", *words, "--targets", "none", "--max-steps", 2)
    assert (code, complaint) == (0, "")
    trainable, config = lnt.load_adapter(tmp_path / "out" / "adapter")
    assert not any("LayerNorm" in path for path in trainable)
    assert {"classifier.bias", "classifier.kernel"} <= trainable.keys()
    assert "Tuning of the head alone" in printed
    assert config.target_modules == ()


@pytest.mark.filterwarnings("default")  # as outside of tests: printed, not raised
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--targets", "LayerNrom"], "--targets 'LayerNrom' matches no module"),
        (["--exclude", "LayerNrom"], "--exclude 'LayerNrom' matches no module"),
        (["--save-modules", "clasifier", "classifier"], "--save-modules 'clasifier' matches no"),
        (["--targets", "classifier"], "--targets 'classifier' matches"),
    ],
)
def test_messages_name_flags_and_no_arguments_of_python(run, model_directory, flags, said):
    """Warnings and errors alike."""
    _, _, complaint = run("inspect", model_directory, *flags)
    assert said in complaint
    for word in ("_modules", "norms=", "name_map", "=True", "lnt.", "config="):
        assert word not in complaint


def test_a_terminal_gets_lines_of_its_width(run, model_directory, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    code, _, complaint = run("inspect", model_directory, "--targets", "classifier")
    assert code == 2
    lines = complaint.splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= 80
    assert all(line.startswith(("lntune-jax: ", "  ")) for line in lines)
