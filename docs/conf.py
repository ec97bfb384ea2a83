"""How the documentation is built: `uv run --group docs sphinx-build -W docs docs/_build`."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # sweep_reference

project = "Certified training, compared"
author = "The authors of the harness"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sweep_reference"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = project

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
default_role = "code"


def as_prose(app, what, name, obj, options, lines):
    """Docstrings are plain prose: a bar or a star is itself, and each `name: meaning` begins a paragraph."""
    text = "\n".join(line.strip() for line in lines)
    text = re.sub(r"([|*])", r"\\\1", text)
    lines[:] = re.sub(r"(?m)^(?=[a-z_]+(, [a-z_]+)*: )", "\n", text).splitlines()


def setup(app):
    """Sphinx's hook."""
    app.connect("autodoc-process-docstring", as_prose)
