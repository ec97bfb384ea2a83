"""Links of README and docs lead somewhere; files and names in backticks are there. The site itself: sphinx-build -W."""

import pydoc
import re

import pytest
from pages import PAGES, ROOT, anchors, inline, links

from harness.command_line import REMOVED

FILE = re.compile(r"(harness|cerdeq|baselines|tests|sweeps)/[\w./*-]+")
NAME = re.compile(r"((harness|cerdeq|baselines)(\.\w+)+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target in links(page):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_files_in_backticks_are_there():
    missing = [(where, text) for where, text in inline() if FILE.fullmatch(text) and not list(ROOT.glob(text))]
    assert missing == []


def test_names_in_backticks_are_there():
    named = [(where, NAME.match(text)[1]) for where, text in inline() if NAME.match(text)]
    assert len(named) > 10
    removed = {f"harness.{name}" for name in REMOVED}
    assert [(where, name) for where, name in named if name not in removed and pydoc.locate(name) is None] == []
