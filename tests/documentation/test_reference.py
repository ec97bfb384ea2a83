"""The tables of keys, options and calls are those of the code; no page is longer than a reader reads."""

import shutil
import subprocess
import sys

from pages import PAGES, ROOT

DOCS = [page for page in PAGES if page.is_relative_to(ROOT / "docs")]


BOTH = """
import runpy, sys
runpy.run_path(sys.argv[1], run_name="__main__")
sys.argv.append("--check")
runpy.run_path(sys.argv[2], run_name="__main__")
"""


def test_tables_are_up_to_date_and_a_stale_one_is_written_anew(tmp_path):
    """In a process of its own: other tests register networks and methods."""
    script, text = ROOT / "docs/reference.py", (ROOT / "docs/methods.md").read_text()
    shutil.copy(script, tmp_path)
    (tmp_path / "methods.md").write_text(text.replace("| `ibp` |", "| `old` |", 1))
    command = [sys.executable, "-c", BOTH, tmp_path / script.name, script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "methods.md").read_text() == text


def test_pages_are_short():
    lengths = {page.name: len(page.read_text().splitlines()) for page in DOCS}
    assert {name: length for name, length in lengths.items() if length > 120} == {}
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100
    assert [page.name for page in DOCS if not page.read_text().startswith("# ")] == []
