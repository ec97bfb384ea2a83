"""The packages of harness are layers: an import points to an earlier one. Only commands import leaves."""

import ast
from pathlib import Path

import harness

CORE = [
    *("common", "machine", "settings", "attacks", "methods", "pretrained", "config", "storage", "data"),
    *("evaluation", "training", "leaderboard", "tracking", "work"),
]
LEAVES = ("checker", "report", "bench")
ROOT = Path(harness.__file__).parent


def imported(path: Path) -> set[str]:
    """Return the packages of harness, or its modules, that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "harness":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("harness."):
            names.add(str(node.module).split(".")[1])
    return names


def arrows(package: str) -> set[str]:
    """Return what the files of a package, or a module, import of the others."""
    files = [ROOT / f"{package}.py"] if (ROOT / f"{package}.py").exists() else list((ROOT / package).rglob("*.py"))
    return set().union(*map(imported, files)) - {package}


def test_every_package_is_in_a_layer():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == {*CORE, *LEAVES} - {"settings"}


def test_the_core_imports_earlier_packages_only():
    upwards = {
        (package, name) for number, package in enumerate(CORE) for name in arrows(package) if name not in CORE[:number]
    }
    assert upwards == set()


def test_leaves_import_the_core_only():
    found = {(leaf, name) for leaf in LEAVES for name in arrows(leaf) if name not in CORE}
    assert found == set()


def test_packages_are_small():
    modules = {path.parent: len(list(path.parent.glob("*.py"))) - 1 for path in ROOT.rglob("__init__.py")}
    assert {str(package): number for package, number in modules.items() if number > 12 and package != ROOT} == {}
