"""Paths that are none, URLs among them: an error of ours wherever one is given, and no folder."""

import inspect
import os
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import lntune_jax as lnt
from lntune_jax.cli import main
from lntune_jax.storage.directories import resolve_path, write_text
from tests.support.directories import KINDS

PARAMS = {"model": {"norm": {"scale": jnp.ones(4)}}, "fc": {"kernel": jnp.ones((4, 4))}}
CONFIG = lnt.LNTuningConfig(target_modules=["norm"])
LEAVES = {"model.norm.scale": np.ones(4, np.float32)}


def make_bank() -> Any:
    return lnt.bank.make_bank(PARAMS, {"a": LEAVES}, on_host=True)


def make_task() -> Any:
    return lnt.tasks.FunctionTask(PARAMS, CONFIG, lambda params, batch: 0.0, lambda step: None)


# Every public function that takes a path, by the argument.
CALLS: dict[str, Callable[[Any], Any]] = {
    "save_adapter(path)": lambda path: lnt.save_adapter(path, LEAVES, CONFIG, base=PARAMS),
    "load_adapter(path)": lnt.load_adapter,
    "restore_adapter(path)": lambda path: lnt.restore_adapter(path, PARAMS),
    "export_peft(path)": lambda path: lnt.export_peft(path, LEAVES, CONFIG),
    "import_peft(path)": lambda path: lnt.import_peft(path, PARAMS),
    "load_peft(path)": lambda path: lnt.load_peft(path, PARAMS),
    "bank.save_bank(path)": lambda path: lnt.bank.save_bank(path, make_bank(), base=PARAMS),
    "bank.load_bank(path)": lambda path: lnt.bank.load_bank(path, PARAMS),
    "bank.make_bank(adapters)": lambda path: lnt.bank.make_bank(PARAMS, {"a": path}),
    "bank.add_adapter(adapter)": lambda path: lnt.bank.add_adapter(
        make_bank(), "b", path, params=PARAMS
    ),
    "bank.replace_adapter(adapter)": lambda path: lnt.bank.replace_adapter(
        make_bank(), "a", path, params=PARAMS
    ),
    "training.open_checkpoints(directory)": lnt.training.open_checkpoints,
    "hub.push_adapter(directory)": lambda path: lnt.hub.push_adapter(path, "me/adapter"),
    "hub.make_card(directory)": lambda path: lnt.hub.make_card(path, "me/adapter"),
    "hub.from_pretrained(name)": lambda path: lnt.hub.from_pretrained(path, PARAMS),
    "models.from_pretrained(name_or_directory)": lnt.models.from_pretrained,
    "models.from_config(directory_or_config)": lnt.models.from_config,
    "models.tokenizer_from_gguf(path)": lnt.models.tokenizer_from_gguf,
    "models.merge_checkpoint(model)": lambda path: lnt.models.merge_checkpoint(path, "a", "o"),
    "models.merge_checkpoint(adapter)": lambda path: lnt.models.merge_checkpoint("b", path, "o"),
    "models.merge_checkpoint(output)": lambda path: lnt.models.merge_checkpoint("b", "a", path),
    "trainer.fit(output)": lambda path: lnt.trainer.fit(make_task(), output=path),
    "trainer.fit_many(output)": lambda path: lnt.trainer.fit_many(
        make_task(), [lnt.trainer.Recipe()], output=path
    ),
    "trainer.read_metrics(lines)": lambda path: lnt.trainer.read_metrics(path),
    "LNTuningConfig.from_pretrained(directory)": lnt.LNTuningConfig.from_pretrained,
    "LNTuningConfig.save_pretrained(directory)": CONFIG.save_pretrained,
}
URLS = [
    "gs://bucket/x",
    "hf://org/name",
    "s3://bucket/x",
    "file:///tmp/x",
    "https://huggingface.co/org/name",
    pathlib.Path("gs://bucket/x"),
    pathlib.Path("file:///tmp/x"),
    epath.Path("gs://bucket/x"),
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in, with a base and an adapter for what reads them first."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("url", URLS, ids=repr)
@pytest.mark.parametrize("name", CALLS)
def test_urls_are_refused_by_name(here: Path, name: str, url: Any) -> None:
    with pytest.raises(lnt.LNTuningError, match=r"'\w+:/.*is a URL, and only local paths") as info:
        CALLS[name](url)
    assert os.fspath(url) in str(info.value)
    assert list(here.iterdir()) == []


def test_every_public_function_that_takes_a_path_is_tried() -> None:
    tried = {name.partition("(")[0] for name in CALLS}
    # Of a leaf.
    found = list_path_functions()
    assert found - tried == {"models.base_specs"}
    assert tried - found <= {"bank.make_bank", "hub.from_pretrained", "models.from_config"}


def list_path_functions() -> set[str]:
    """Public functions and methods with an argument that is annotated as a path, or named so."""
    found = set()
    modules = {"": lnt, **{f"{name}.": getattr(lnt, name) for name in lnt._SUBMODULES}}
    for prefix, module in modules.items():
        for name in getattr(module, "__all__", vars(module)):
            value = getattr(module, name)
            home = "lntune_jax" if hasattr(module, "__all__") else module.__name__
            if name.startswith("_") or not getattr(value, "__module__", "").startswith(home):
                continue
            own = (
                {f"{name}.{key}": each for key, each in vars(value).items()}
                if inspect.isclass(value) and not issubclass(value, Exception)
                else {name: value}
            )
            for key, each in own.items():
                function = getattr(each, "__func__", each)
                if inspect.isfunction(function) and not key.split(".")[-1].startswith("_"):
                    kinds = [str(p.annotation) for p in _parameters(function)]
                    names = {p.name for p in _parameters(function)}
                    if any("Path" in kind or kind == "Source" for kind in kinds) or names & {
                        "path",
                        "directory",
                    }:
                        found.add(key if hasattr(lnt, key.split(".")[0]) else prefix + key)
    return found


def _parameters(function: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


TRAIN = ["train", "--model", "org/name", "--data", "data.csv", "--output", "out"]
COMMANDS = {
    "--output": [*TRAIN[:-1], "gs://bucket/x"],
    "--data": ["train", "--model", "org/name", "--data", "gs://bucket/x", "--output", "out"],
    "--model": ["train", "--model", "gs://bucket/x", "--data", "data.csv", "--output", "out"],
    "--eval-data": [*TRAIN, "--eval-data", "gs://bucket/x"],
    "--more-data": [*TRAIN, "--more-data", "gs://bucket/x"],
    "--run": ["predict", "--run", "gs://bucket/x", "--data", "data.csv"],
    "--adapter": ["merge", "--model", "org/name", "--adapter", "gs://bucket/x", "--output", "out"],
}


@pytest.mark.parametrize("flag", COMMANDS)
def test_urls_of_the_command_line_name_the_flag(
    here: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    assert main(COMMANDS[flag]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{flag} 'gs:/" in line
    assert "is a URL, and only local paths are read and written" in line
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("path", ["", "x" * 300, "a\0b", "a\udcffb", None, 3, b"bytes"])
@pytest.mark.parametrize("name", ["save_adapter(path)", "load_peft(path)", "bank.load_bank(path)"])
def test_what_is_no_path_is_refused(name: str, path: Any) -> None:
    with pytest.raises(lnt.errors.AdapterError, match="is no path of a directory"):
        CALLS[name](path)


def test_checkpoints_refuse_what_is_no_path() -> None:
    Path("file").touch()
    for path in ("", "x" * 300, None, "file"):
        with pytest.raises(lnt.errors.CheckpointError, match=r"is no path of a dir|file is a file"):
            lnt.training.open_checkpoints(path)  # type: ignore[arg-type]


def test_names_that_only_look_a_little_like_urls_are_paths(here: Path) -> None:
    for name in ("run:1", "a:b/c", "x:/y", "./gs:/y", "C:/users", "1gs:/y"):
        assert resolve_path(name, error=lnt.LNTuningError) == here / name
    assert resolve_path(here / "gs:" / "y", error=lnt.LNTuningError) == here / "gs:" / "y"
    assert resolve_path(epath.Path("plain"), error=lnt.LNTuningError) == here / "plain"


@pytest.mark.parametrize("kind", KINDS)
def test_paths_that_are_unusual_and_right(
    here: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    write, read = KINDS[kind]
    for number in (1, 2):
        write(here / "place" / f"warm-{number}", number)
    place = here / "place"
    for name in ("n" * 255, "ä" * 127, "with space", "-dash", "new\nline", "a" * 237, "a" * 238):
        write(place / name, 1)
        write(place / name, 2, overwrite=True)
        assert read(place / name) == 2
    (place / "real").mkdir()
    (place / "link").symlink_to("real")
    write(place / "link", 1, overwrite=True)  # an empty directory, by a link
    assert (place / "link").is_symlink()
    assert read(place / "real") == 1
    (place / "dangling").symlink_to("later")
    write(place / "dangling", 1)
    assert read(place / "later") == 1
    if kind != "merged":  # whose support needs an absolute path
        monkeypatch.chdir(place)
        write("relative/", 1)  # type: ignore[arg-type]
        monkeypatch.chdir(here)
        assert read(place / "relative") == 1
        assert read(epath.Path(place / "relative")) == 1  # type: ignore[arg-type]
    assert [path.name for path in place.iterdir() if path.name.startswith(".")] == []


def test_a_text_file_with_a_long_name(here: Path) -> None:
    write_text(here / ("n" * 255), "text")
    assert (here / ("n" * 255)).read_text() == "text"
