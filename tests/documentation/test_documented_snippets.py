"""Python of the docs is run, in a process that registers what it likes; sweep files of the docs are read."""

import ast
import json
import os
import subprocess
import sys
from importlib import import_module
from itertools import groupby

import pytest
import torch
import yaml
from pages import ROOT, blocks, files, inline

from baselines import build
from harness.common.models import validate
from harness.config.expansion import expand_file
from harness.config.file import read_file
from harness.config.own_data import KINDS, OwnData

PYTHON = blocks("python")
RUN = {page: [*group] for page, group in groupby((block for block in PYTHON if block.run), lambda block: block.page)}


def test_snippets_run(tmp_path):
    """Blank lines keep each snippet on its lines of the page, so that errors name them."""
    scripts = []
    for page, snippets in RUN.items():
        lines: list[str] = []
        for block in snippets:
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
    torch.save({**build("conv", "mnist")[1:].state_dict()}, tmp_path / "net.pt")  # where the file names a checkpoint
    assert expand_file(read_file(path, None, has_gpu=lambda: True)).trainings


def test_data_of_one_s_own_is_named_in_every_form():
    named = {text for page, text in inline() if page.startswith("docs/adding.md") and text.startswith("dataset: {")}
    kinds = {validate(OwnData, yaml.safe_load(text)["dataset"], "dataset").kind for text in named}
    assert kinds == set(KINDS)


def test_files_for_clusters_can_be_parsed():
    for path in (ROOT / "docs/clusters").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())
    for path in (ROOT / "docs/clusters").glob("*.sh"):
        subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_package_of_one_s_own_is_trained_certified_and_rechecked(tmp_path, monkeypatch):
    """As the page has it, in processes of their own; commands that only read need no package."""
    package, work = tmp_path / "there", tmp_path / "work"
    for name, text in files(ROOT / "docs/adding.md").items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    work.mkdir()
    for variable in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)

    def run(command, *arguments, paths=(ROOT, package)):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
        words = [sys.executable, "-m", f"harness.{command}", *arguments]
        done = subprocess.run(words, cwd=work, env=environment, capture_output=True, text=True)
        return done.returncode, done.stderr + done.stdout

    status, message = run("run", str(package / "study.yaml"))
    assert status == 0, message
    for module in ("nets", "methods"):
        assert f"plugin my_package.{module}: imported from {package}/my_package/{module}.py\n" in message
    configs = [json.loads(path.read_text())["config"] for path in work.glob("results/own/networks/*/training.json")]
    rows = {(config["model"], config["method"]) for config in configs}
    assert rows == {("shallow", "ibp"), ("shallow", "attack-and-box"), ("my_package.nets:shallow", "attack-and-box")}
    evaluations = [
        ("run", "results/own/sweep.yaml", "--set", "evaluation={stages: [ibp, crown-ibp], test_images: 20}"),
        ("recheck", "results/own", "--plugin", "my_package.nets", "--plugin", "my_package.methods"),
    ]
    for command in [*evaluations, *(("tables", "results/own", *more) for more in ((), ("--status",)))]:
        status, message = run(*command, paths=(ROOT, package) if command in evaluations else (ROOT,))
        assert status == 0, message
    for command in evaluations:
        status, message = run(*command, paths=(ROOT,))
        assert status == 2 and "found 'my_package.nets', allowed: a module that Python finds" in message
    with open(package / "my_package/nets.py", "a") as file:
        file.write("CHANGED = True\n")
    status, message = run(*evaluations[1])
    assert status == 1 and "the digest of the source that this network was made with" in message
