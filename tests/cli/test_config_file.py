import pytest
import yaml

from lntune_jax.cli.app import _parse
from lntune_jax.cli.config_file import write_config
from lntune_jax.errors import ConfigError

TRAIN = ["--model", "M", "--data", "D", "--output", "O"]


@pytest.fixture
def write(tmp_path):
    def call(text):
        path = tmp_path / "some.yaml"
        path.write_text(text)
        return str(path)

    return call


def test_flags_and_groups_are_read_and_words_win(write):
    path = write(
        "model: M\ndata: D\noutput: O\nepochs: 5\ntargets: [ln_1, ln_2]\ndropout: true\n"
        "recipe:\n  learning-rate: 1e-3\n  batch_size: 8\npatience:\n"
    )
    found = _parse("train", ["--config", path, "--batch-size", "4", "--output", "P"])
    words = ["--epochs", "5", "--targets", "ln_1", "ln_2", "--dropout", "--learning-rate", "1e-3"]
    assert found == _parse("train", [*TRAIN, *words, "--batch-size", "4", "--output", "P"])
    assert found.config is None


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        (
            "lerning_rate: 1",
            ["unknown key lerning_rate in some.yaml", "did you mean learning_rate?"],
        ),
        ("recipe: {epoch: 1}", ["unknown key epoch", "did you mean epochs?"]),
        ("config: other.yaml", ["unknown key config"]),
        ("epochs: many", ["epochs in some.yaml is 'many'", "a whole number"]),
        ("epochs: [1, 2]", ["epochs in some.yaml is a list"]),
        ("text_column: yes", ["text_column in some.yaml is True", "in quotes"]),
        ("dropout: 1", ["dropout in some.yaml is 1", "true or false"]),
        ("epochs: 1\nrecipe: {epochs: 2}", ["epochs in some.yaml and epochs are the same flag"]),
        ("- epochs", ["holds no flags"]),
        ("", ["holds no flags"]),
        ("a: [", ["is not YAML"]),
    ],
)
def test_a_faulty_file_is_one_line(run, write, text, fragments):
    code, printed, complaint = run("train", *TRAIN, "--config", write(text))
    assert (code, printed, complaint.count("\n")) == (2, "", 1)
    for fragment in [*fragments, "see lntune-jax train --help"]:
        assert fragment in complaint


def test_a_file_that_is_not_there():
    with pytest.raises(ConfigError, match=r"--config no\.yaml cannot be read: No such file"):
        _parse("train", ["--config", "no.yaml"])


def test_what_is_written_repeats_the_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--learning-rate", "1e-05", "--targets", "none", "--dropout", "--task", "causal_lm"]
    words += ["--eval-data", "E", "--sweep", "weight_decay=0,1", "--more-data", "F", "G"]
    once = ["--resume", "--stop-after-steps", "3", "--process-id", "1"]
    settings = _parse("train", [*TRAIN, *words])
    write_config(tmp_path / "run.yaml", _parse("train", [*TRAIN, *words, *once]))
    content = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert content["data"] == str(tmp_path / "D")
    assert content["model"] == "M"  # an id on the hub
    assert not {"resume", "stop_after_steps", "process_id", "config", "patience"} & set(content)
    again = _parse("train", ["--config", "run.yaml"])
    write_config(tmp_path / "again.yaml", again)
    assert yaml.safe_load((tmp_path / "again.yaml").read_text()) == content
    assert (again.recipe, again.targets) == (settings.recipe, settings.targets)


def test_a_run_is_repeated_from_the_file_that_it_wrote(run, table, tmp_path, model_directory):
    first, second = tmp_path / "first", tmp_path / "second"
    words = ["--model", model_directory, "--data", table, "--max-steps", 2, "--buckets", 1]
    assert run("train", *words, "--learning-rate", "2e-3", "--output", first)[0] == 0
    assert run("train", "--config", first / "run.yaml", "--output", second)[0] == 0
    name = "adapter/lntune.json"
    assert (first / name).read_bytes() == (second / name).read_bytes()
