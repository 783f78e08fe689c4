"""Settings of the documentation: `sphinx-build -W -b html docs docs/_build/html`."""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]
os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # for the notebooks' kernels

from bayesvision import __version__  # noqa: E402

project = "bayesvision"
author = "The bayesvision authors"
copyright = author
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "results",
    "pages",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build", "gallery/*.ipynb", "gallery/*.py", "api/*.ipynb"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = f"bayesvision {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["custom.css"]

# Pages: MyST with executed cells. A cell that fails, fails the build.
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"

# Examples: run with --smoke. Add a number here to keep an example out.
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/\d\d_",
    "ignore_pattern": r"^(?!\d\d_)",
    "within_subsection_order": "FileNameSortKey",
    "reset_argv": "results.smoke",
    "download_all_examples": False,
    "write_computation_times": False,
    "abort_on_example_error": True,
    "show_memory": False,
    "min_reported_time": 1e9,
    "matplotlib_animations": False,
}

# Reference: Google-style docstrings whose formulas are plain text.
autosummary_generate = True
autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
napoleon_use_ivar = True
default_role = "code"


def escape(app, what, name, obj, options, lines):
    """Formulas hold bars and stars, which reStructuredText would read as markup."""
    for k, line in enumerate(lines):
        parts = re.split(r"(`[^`]*`)", line)
        parts[::2] = [re.sub(r"[*|\\]|(?<=\w)_(?=\W|$)", r"\\\g<0>", part) for part in parts[::2]]
        lines[k] = "".join(parts)
    if what == "property":
        lines.insert(0, "")  # or napoleon takes what stands before a colon for a type


def skip(app, what, name, obj, skipped, options):
    """Fields of named tuples are described with their class; scikit-learn describes `set_..._request`."""
    return True if type(obj).__name__ == "_tuplegetter" or name.endswith("_request") else None


def setup(app):
    app.connect("autodoc-process-docstring", escape, priority=100)  # before napoleon
    app.connect("autodoc-skip-member", skip)
