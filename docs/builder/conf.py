"""Settings of the site for Sphinx. `make_site.py` lays out the pages and calls it with these."""

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from links import repository_address  # noqa: E402

project = "lntune_jax"
author = "The lntune_jax maintainers"
project_copyright = author
release = version = version_of("lntune-jax")

extensions = [
    "myst_nb",  # Markdown, and notebooks that are kept as text
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",  # docstrings in Google's style
    "sphinx_copybutton",
]
# What `api.py` writes names each object itself.
autosummary_generate = False
# Files that pages link to are shown or copied by `links.py`; they are no pages themselves.
exclude_patterns = ["files/**/*.py", "files/**/*.ipynb"]
nitpicky = False  # names of other libraries' types in signatures are no links

# Anchors as GitHub makes them: a link works on both.
myst_heading_anchors = 5
myst_enable_extensions = ["colon_fence"]

# Notebooks are kept as text, run at every build, and kept until they change.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE.parent.parent / "build" / "docs-notebooks")
nb_execution_timeout = 600  # of one cell, on a busy machine
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # notes of other libraries
nb_ipywidgets_js = {}  # would be loaded from a foreign host

# `name` in a docstring is a link where it is a public name, and code where it is not.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_use_admonition_for_examples = False

# A page may show a file with parts left out ("...").
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "sphinx_book_theme"
html_context = {"default_mode": "auto"}
html_title = f"lntune_jax {release}"
html_short_title = "lntune_jax"
html_static_path = [str(HERE / "static")]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_last_updated_fmt = None
html_theme_options = {
    "logo": {"text": "lntune_jax"},
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "navbar_start": [],
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],  # search stands in the left column
    "use_download_button": False,
    "use_fullscreen_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
if repository_address():
    html_theme_options |= {"repository_url": repository_address(), "use_repository_button": True}

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def _part_plurals(_app: Any, _what: Any, _name: Any, _value: Any, _given: Any, lines: Any) -> None:
    """`Array`s is code and an s: reStructuredText wants an escaped space between them."""
    lines[:] = [re.sub(r"(`[^`]+`)(\w?)", _part, line) for line in lines]


def _part(match: re.Match[str]) -> str:
    return f"{match[1]}\\ {match[2]}" if match[2] else match[1]


def _shorten_defaults(
    _app: Any, _what: Any, _name: Any, _value: Any, _given: Any, signature: Any, returned: Any
) -> tuple[Any, Any]:
    """`= <factory>` is no Python: Sphinx would show such a signature as one long word."""
    return signature and re.sub(r"= <[^<>]*>", "= ...", signature), returned


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", _part_plurals)
    app.connect("autodoc-process-signature", _shorten_defaults)
