"""The packages of cerdeq are layers: an import points to an earlier one."""

import re
from pathlib import Path

import cerdeq

LAYERS = ("operators", "tracing", "bounds", "equilibrium", "branch", "onnx")
ROOT = Path(cerdeq.__file__).parent


def imported(package):
    text = "\n".join(path.read_text() for path in (ROOT / package).rglob("*.py"))
    return set(re.findall(r"^\s*(?:from|import) cerdeq\.(\w+)", text, re.M)) & {*LAYERS} - {package}


def test_every_package_is_a_layer():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == {*LAYERS}


def test_packages_import_earlier_ones_only():
    upwards = {(package, name) for package in LAYERS for name in imported(package)}
    assert {pair for pair in upwards if LAYERS.index(pair[1]) > LAYERS.index(pair[0])} == set()
