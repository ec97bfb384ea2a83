"""Python of the docs is run, in a process that registers what it likes; sweep files of the docs are read."""

import ast
import subprocess
import sys
from importlib import import_module
from itertools import groupby

import pytest
import yaml
from pages import ROOT, blocks

from harness.config.sweep_file import load_sweep

PYTHON = blocks("python")
RUN = {page: [*group] for page, group in groupby((block for block in PYTHON if block.run), lambda block: block.page)}


def test_snippets_run(tmp_path):
    """Blank lines keep each snippet on its lines of the page, so that errors name them."""
    scripts = []
    for page, found in RUN.items():
        lines: list[str] = []
        for block in found:
            lines += [""] * (block.line - len(lines)) + block.text.splitlines()
        scripts.append(tmp_path / f"{page.stem}.py")
        scripts[-1].write_text("\n".join(lines) + "\n")
    run = "import runpy, sys\nfor script in sys.argv[1:]: runpy.run_path(script)"
    done = subprocess.run([sys.executable, "-c", run, *scripts], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", [block for block in PYTHON if not block.run], ids=str)
def test_snippets_that_are_not_run_compile_and_import_what_there_is(block):
    for node in ast.walk(ast.parse(block.text, str(block))):
        if isinstance(node, ast.Import):
            for name in node.names:
                import_module(name.name)
        if isinstance(node, ast.ImportFrom):
            assert [name.name for name in node.names if not hasattr(import_module(node.module), name.name)] == []


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_sweep_files_are_read(block, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(block.text)
    assert load_sweep(path, None, has_gpu=True).trials


def test_files_for_clusters_can_be_parsed():
    for path in (ROOT / "docs/clusters").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())
    for path in (ROOT / "docs/clusters").glob("*.sh"):
        subprocess.run(["bash", "-n", path], check=True)
