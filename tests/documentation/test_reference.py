"""The tables of keys, options and calls are those of the code; no page is longer than a reader reads."""

import shutil
import subprocess
import sys

from pages import PAGES, ROOT

DOCS = [page for page in PAGES if page.is_relative_to(ROOT / "docs")]


def reference(docs, *arguments):
    """Run docs/reference.py in a process of its own: other tests register networks and methods."""
    command = [sys.executable, docs / "reference.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_tables_are_up_to_date():
    done = reference(ROOT / "docs", "--check")
    assert done.returncode == 0, done.stderr


def test_a_stale_table_is_written_anew(tmp_path):
    shutil.copy(ROOT / "docs/reference.py", tmp_path)
    text = (ROOT / "docs/methods.md").read_text()
    (tmp_path / "methods.md").write_text(text.replace("| `ibp` |", "| `old` |", 1))
    assert reference(tmp_path).returncode == 0 and (tmp_path / "methods.md").read_text() == text


def test_pages_are_short():
    lengths = {page.name: len(page.read_text().splitlines()) for page in DOCS}
    assert {name: length for name, length in lengths.items() if length > 120} == {}
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100
    assert [page.name for page in DOCS if not page.read_text().startswith("# ")] == []
