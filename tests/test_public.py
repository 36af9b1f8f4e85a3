"""The public surface: documented, exemplified, and light to import."""

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import lntune_jax as lnt

PUBLIC = sorted(lnt.__all__)
CONTRACT = {
    "LNTuningConfig",
    "partition_params",
    "merge_params",
    "label_params",
    "make_optimizer",
    "report_params",
    "value_and_grad",
    "TrainState",
    "make_train_step",
    "save_adapter",
    "load_adapter",
    "restore_adapter",
    "export_peft",
    "import_peft",
    "load_peft",
    "LNTuningError",
}


def test_the_contract_s_names_are_there():
    assert set(PUBLIC) >= CONTRACT


def get_public_objects():
    """The public names of the package and of its public submodules."""
    objects = {}
    beside = (
        lnt.adapters,
        lnt.bank,
        lnt.discovery,
        lnt.errors,
        lnt.models,
        lnt.selection,
        lnt.tasks,
        lnt.trainer,
        lnt.training,
        lnt.hub,
        lnt.integrations.nnx,
        lnt.peft,
        lnt.integrations.torchax,
    )
    for module in (lnt, *beside):
        for name in getattr(module, "__all__", vars(module)):
            value = getattr(module, name)
            prefix = "lntune_jax" if hasattr(module, "__all__") else module.__name__
            own = getattr(value, "__module__", "").startswith(prefix)
            if not name.startswith("_") and own and not inspect.ismodule(value):
                taken = objects.get(name, value) is not value  # as make_optimizer is
                objects[f"{module.__name__}.{name}" if taken else name] = value
    return objects


@pytest.mark.parametrize("name", get_public_objects())
def test_every_public_name_is_documented_with_a_doctest(name):
    value = get_public_objects()[name]
    assert doctest.DocTestParser().get_examples(inspect.getdoc(value) or ""), name
    for method_name, method in vars(value).items() if inspect.isclass(value) else ():
        if not method_name.startswith("_") and inspect.isroutine(method):
            assert inspect.getdoc(method), (value, method_name)


def test_every_error_a_user_can_cause_has_the_base_class():
    classes = filter(inspect.isclass, get_public_objects().values())
    errors = [error for error in classes if issubclass(error, Exception)]
    assert len(errors) >= 10
    for error in errors:
        assert issubclass(error, lnt.LNTuningError | Warning)


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout


def test_import_loads_no_optional_package():
    heavy = "transformers torch safetensors orbax flax equinox huggingface_hub rich yaml pandas"
    code = f"""
import sys, lntune_jax
print([name for name in {heavy.split()} if name in sys.modules])
"""
    assert run_python(code).strip() == "[]"


def test_submodules_import_by_themselves_without_torch_or_transformers():
    code = """
import sys
import lntune_jax.models, lntune_jax.training.checkpoints, lntune_jax.cli, lntune_jax.peft
import lntune_jax.bank, lntune_jax.hub, lntune_jax.integrations.nnx
import lntune_jax.integrations.torchax
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    assert run_python(code).strip() == "[]"


def test_names_are_imported_when_they_are_used():
    """JAX takes a second, and the command line's help needs none."""
    code = """
import sys, lntune_jax as lnt
before = "jax" in sys.modules
lnt.select
print(before, "jax" in sys.modules, "select" in vars(lnt))
from lntune_jax import *
print(adamw.__name__, "merge_params" in dir(lnt))
"""
    assert run_python(code).split() == ["False", "True", "True", "adamw", "True"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lnt.nothing


def test_type_checkers_see_the_names_that_a_program_imports():
    tree = ast.parse(Path(lnt.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {name.name: node.module for node in block.body for name in node.names}
    assert set(seen) == set(lnt.__all__)
    for name, home in seen.items():
        assert getattr(importlib.import_module(f"lntune_jax.{home}"), name) is getattr(lnt, name)


def test_submodules_are_attributes_loaded_lazily():
    code = """
import sys, lntune_jax as lnt
before = "lntune_jax.models" in sys.modules
print(before, lnt.models.from_pretrained.__name__, lnt.training.save_state.__name__)
"""
    assert run_python(code).split() == ["False", "from_pretrained", "save_state"]
