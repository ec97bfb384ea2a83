"""How the documentation is built: `uv run --group docs sphinx-build -W docs docs/_build`."""

project = "Certified training, compared"
author = "The authors of the harness"
extensions = ["myst_parser", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = project

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
