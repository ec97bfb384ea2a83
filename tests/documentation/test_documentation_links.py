"""Links of README and docs lead somewhere; files and names in backticks are there. The site itself: sphinx-build -W."""

import html
import pydoc
import re
import subprocess
import sys

import pytest
from pages import PAGES, ROOT, anchors, inline, links

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
    assert [(where, name) for where, name in named if pydoc.locate(name) is None] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_page_is_in_the_built_site(tmp_path):
    """Sphinx writes pages of its own, such as search.html, over those that have their names."""
    build = [sys.executable, "-m", "sphinx", "-q", "docs", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    if "No module named sphinx" in done.stderr:
        pytest.skip("needs the dependency group docs")
    assert done.returncode == 0, done.stderr
    sources = [page.relative_to(ROOT / "docs") for page in PAGES if page.is_relative_to(ROOT / "docs")]
    assert len(sources) > 20
    assert [page for page in sources if not has_title(tmp_path / page.with_suffix(".html"), page)] == []


def has_title(built, page):
    """Whether a file is the built page: its first heading has the same letters."""
    title = (ROOT / "docs" / page).read_text().partition("# ")[2].splitlines()[0]
    heading = re.search(r"<h1>(.*?)<a ", built.read_text() if built.exists() else "", re.DOTALL)
    return heading is not None and letters(html.unescape(re.sub("<.*?>", "", heading[1]))) == letters(title)


def letters(text):
    return re.sub(r"\W", "", text)
