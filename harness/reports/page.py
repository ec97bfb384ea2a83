"""Templates to pages."""

from pathlib import Path
from typing import Any

import jinja2

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


def render(template: str, **told: Any) -> str:
    """A page from a template of this folder."""
    return _TEMPLATES.get_template(template).render(**told) + "\n"
