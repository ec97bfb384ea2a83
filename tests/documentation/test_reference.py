"""The tables of keys, options and calls are those of the code; no page is longer than a reader reads."""

import importlib.util

import pytest
from pages import PAGES, ROOT

DOCS = [page for page in PAGES if page.is_relative_to(ROOT / "docs")]


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_up_to_date(reference):
    pages = {page: page.read_text() for page in DOCS}
    assert sum(text.count("<!-- reference: ") for text in pages.values()) > 10
    stale = [str(page) for page, text in pages.items() if reference.with_tables(text) != text]
    assert not stale, f"run `uv run python docs/reference.py`: {stale}"


def test_a_stale_table_is_written_anew(reference):
    text = (ROOT / "docs/methods.md").read_text()
    stale = text.replace("| `ibp` |", "| `old` |", 1)
    assert stale != text and reference.with_tables(stale) == text


def test_pages_are_short():
    lengths = {page.name: len(page.read_text().splitlines()) for page in DOCS}
    assert {name: length for name, length in lengths.items() if length > 120} == {}
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100
    assert [page.name for page in DOCS if not page.read_text().startswith("# ")] == []
