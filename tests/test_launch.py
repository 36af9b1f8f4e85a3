"""The launch scripts can be parsed, and name flags that there are."""

import re
import shutil
import subprocess
from dataclasses import fields, is_dataclass

import pytest
import yaml

from lntune_jax.cli.options import TrainSettings
from tests.support.paths import ROOT

FOLDER = ROOT / "examples" / "launch"
SCRIPTS = sorted(FOLDER.glob("*.sh"))


def flags_of(settings):
    for each in fields(settings):
        group = each.default_factory
        if isinstance(group, type) and is_dataclass(group):
            yield from flags_of(group)
        else:
            yield "--" + each.name.replace("_", "-")


def check_flags(words):
    assert "--distributed" in words
    assert set(words) <= set(flags_of(TrainSettings)), set(words) - set(flags_of(TrainSettings))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_parsed_by_bash(script):
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run([bash, "-n", str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    text = script.read_text().replace("\\\n", " ")
    commands = [
        line for line in text.splitlines() if re.search(r"lntune-jax (train |\"\$@\")", line)
    ]
    (command,) = [line for line in commands if not line.startswith("#")]
    check_flags(re.findall(r"--[a-z-]+", command.split("lntune-jax", 1)[1]))


def test_the_jobset_is_parsed():
    (job,) = yaml.safe_load_all((FOLDER / "jobset.yaml").read_text())
    assert job["kind"] == "JobSet"
    (group,) = job["spec"]["replicatedJobs"]
    pods = group["template"]["spec"]
    assert pods["parallelism"] == pods["completions"]
    (container,) = pods["template"]["spec"]["containers"]
    assert container["command"] == ["lntune-jax", "train"]
    check_flags([word.split("=")[0] for word in container["args"]])
    mesh = next(word for word in container["args"] if word.startswith("--mesh"))
    chips = pods["completions"] * container["resources"]["limits"]["google.com/tpu"]
    assert mesh == f"--mesh=fsdp={chips}"
