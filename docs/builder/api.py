"""The pages of the API reference: one for each public module, from its docstrings."""

import importlib
import inspect
from collections.abc import Iterable
from types import ModuleType
from typing import Any

# Every module that a user imports from. What `lntune_jax` itself has is described there only.
MODULES = (
    "lntune_jax",
    "lntune_jax.selection",
    "lntune_jax.discovery",
    "lntune_jax.training",
    "lntune_jax.adapters",
    "lntune_jax.peft",
    "lntune_jax.bank",
    "lntune_jax.models",
    "lntune_jax.tasks",
    "lntune_jax.trainer",
    "lntune_jax.hub",
    "lntune_jax.integrations.nnx",
    "lntune_jax.integrations.keras",
    "lntune_jax.integrations.tunix",
    "lntune_jax.integrations.torchax",
    "lntune_jax.errors",
)
# What a name that is neither a class nor a function holds: such a value has no docstring.
VALUES = {
    "lntune_jax.peft.NAME_MAPS": "The name maps that come with the library, by name.",
    "lntune_jax.tasks.LOSS": "The metric of a task that measures its evaluation loss only.",
    "lntune_jax.tasks.TASKS": "What can be trained, by the name that ``--task`` takes.",
}


class MissingDocstringError(Exception):
    """A public name says nothing of itself."""


def page_of(module: str) -> str:
    """The place of a module's page, by its path from the site's root."""
    return f"api/{module.removeprefix('lntune_jax.').replace('.', '-')}.md"


def public_names(module: ModuleType) -> list[str]:
    """The names a module offers: `__all__`, or what it or its own modules define."""
    names = getattr(module, "__all__", None)
    if names is not None:
        return list(names)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith(module.__name__)
    ]


def make_pages() -> dict[str, str]:
    """Write the page of every module: `{place: text}`.

    Raises:
        MissingDocstringError: A module, a public name or a public method has no docstring.
    """
    modules = [importlib.import_module(name) for name in MODULES]
    check_docstrings(modules)
    homes: dict[int, str] = {}  # by identity: a name that two modules offer is described once
    pages = {page_of(module.__name__): _make_page(module, homes) for module in modules}
    rows = "\n".join(f"- [{name}]({page_of(name).removeprefix('api/')})" for name in MODULES)
    pages["api/index.md"] = (
        "# API reference\n\nA page for each module that you import from, made from its "
        f"docstrings.\n\n{rows}\n"
    )
    return pages


def check_docstrings(modules: Iterable[ModuleType]) -> None:
    """Find what has no docstring.

    Raises:
        MissingDocstringError: A module, a public name or a public method; all are listed.
    """
    if missing := [name for module in modules for name in _find_missing(module)]:
        raise MissingDocstringError(f"no docstring: {', '.join(missing)}")


def _find_missing(module: ModuleType) -> list[str]:
    found = [] if module.__doc__ else [module.__name__]
    for name in public_names(module):
        value, path = getattr(module, name), f"{module.__name__}.{name}"
        if not (VALUES.get(path) if _kind(value) == "data" else _own_docstring(value)):
            found.append(path)
        for member in _members(value):
            if not inspect.getdoc(getattr(value, member)):
                found.append(f"{path}.{member}")
    return found


def _members(value: Any) -> list[str]:
    """The public methods and properties that a class defines. Its docstring names its fields."""
    return [
        name
        for name, member in (vars(value).items() if inspect.isclass(value) else ())
        if not name.startswith("_") and (inspect.isroutine(member) or isinstance(member, property))
    ]


def _own_docstring(value: Any) -> str | None:
    """A docstring that somebody wrote: not the base class's, nor a dataclass's signature."""
    text = value.__doc__
    made = inspect.isclass(value) and (text or "").startswith(f"{value.__name__}(")
    return None if made else text


def _kind(value: Any) -> str:
    if inspect.isclass(value):
        return "exception" if issubclass(value, BaseException) else "class"
    return "function" if inspect.isroutine(value) else "data"


def _make_page(module: ModuleType, homes: dict[int, str]) -> str:
    name = module.__name__
    here, elsewhere = [], []
    for each in public_names(module):
        value = getattr(module, each)
        home = homes.setdefault(id(value), f"{name}.{each}")
        (here if home == f"{name}.{each}" else elsewhere).append((each, home, _kind(value)))
    lines = [f"# {name}", "", "```{eval-rst}", f".. module:: {name}", ""]
    lines += [*inspect.cleandoc(module.__doc__ or "").splitlines(), ""]
    if here:
        lines += [".. autosummary::", "   :nosignatures:", ""]
        lines += [f"   {each}" for each, _, kind in here if kind != "data"] + [""]
    if elsewhere:
        shared = ", ".join(f":py:obj:`{each} <{home}>`" for each, home, _ in elsewhere)
        lines += [f"Also here, and described where you import it first: {shared}.", ""]
    for each, path, kind in here:
        if kind == "data":
            lines += [f".. py:data:: {each}", "", f"   {VALUES.get(path)}", ""]
            continue
        members = _members(getattr(module, each))
        lines += [f".. auto{kind}:: {each}"]
        lines += [f"   :members: {', '.join(members)}", ""] if members else [""]
    return "\n".join([*lines, "```", ""])
