"""Python of the docs is run, in a process that registers what it likes; sweep files of the docs are read."""

import ast
import os
import subprocess
import sys
from importlib import import_module
from itertools import groupby

import pytest
from pages import ROOT, blocks, files

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


OF_PLUGINS = files(ROOT / "docs/adding.md")["study.yaml"]


@pytest.mark.parametrize("block", [block for block in blocks("yaml") if block.text != OF_PLUGINS], ids=str)
def test_sweep_files_are_read(block, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(block.text)
    assert load_sweep(path, None, has_gpu=True).trials


def test_a_package_of_one_s_own_is_trained_certified_and_rechecked(tmp_path):
    """As the page has it, in processes of their own, without a line changed here; who reads needs no package."""
    for name, text in files(ROOT / "docs/adding.md").items():
        (tmp_path / "there" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "there" / name).write_text(text)
    (tmp_path / "work").mkdir()
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    }

    def run(command, *arguments, path=(ROOT, tmp_path / "there")):
        here = environment | {"PYTHONPATH": os.pathsep.join(map(str, path))}
        called = [sys.executable, "-m", f"harness.{command}", *arguments]
        return subprocess.run(called, cwd=tmp_path / "work", env=here, capture_output=True, text=True, timeout=280)

    done = run("run", "../there/study.yaml")
    assert done.returncode == 0, done.stderr
    for module in ("nets", "methods"):
        file = tmp_path / f"there/my_package/{module}.py"
        assert f"plugin my_package.{module}: imported from {file}\n" in done.stderr
    assert "my_package.nets:shallow smaller-ibp part=0.5" in done.stdout
    for command in ("certify", "recheck"):
        arguments = ["--stages", "ibp,crown-ibp", "--images", "20"] if command == "certify" else []
        assert run(command, "results/own", *arguments).returncode == 0
    for command in ("status", "tables", "report", "depth"):
        assert run(command, "results/own", path=[ROOT]).returncode == 0, "nothing of the package is there"
    for command in ("certify", "recheck"):
        assert (
            "found 'my_package.nets', allowed: a module that Python finds"
            in (missing := run(command, "results/own", path=[ROOT])).stderr
        )
        assert missing.returncode == 2
    with open(tmp_path / "there/my_package/nets.py", "a") as file:
        file.write("# changed\n")
    for command in ("certify", "recheck"):
        changed = run(command, "results/own")
        assert changed.returncode == 2 and "the digest of the source that this trial was made with" in changed.stderr
