"""The checker shares with what it checks what docs/soundness.md says, and nothing else."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[3]
ON_THE_PAGE = (
    "baselines", "cerdeq.equilibrium", "cerdeq.bounds", "cerdeq.tracing", "harness.evaluation.network",
    "harness.evaluation.ranges",
)  # fmt: skip
OWN = ("harness.checker",)
DATA_AND_FILES = tuple(f"harness.{name}" for name in (
    "common", "config", "data", "machine", "own_data", "pretrained", "storage"
))  # fmt: skip


def test_the_page_names_what_the_checker_imports_of_others():
    section = (ROOT / "docs/soundness.md").read_text().split("### What the recheck does")[1]
    assert all(f"`{name}`" in section for name in ON_THE_PAGE)
    trees = [ast.parse(path.read_text()) for path in (ROOT / "harness/checker").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported = {f"{node.module}.{name.name}" for node in nodes for name in node.names} - {"cerdeq.OnnxError"}
    imported = {name for name in imported if name.startswith(("baselines.", "cerdeq.", "harness."))}

    def is_in(name, packages):
        return any(f"{name}.".startswith(f"{package}.") for package in packages)

    assert {name for name in imported if not is_in(name, ON_THE_PAGE + OWN + DATA_AND_FILES)} == set()
    assert all(any(is_in(name, [package]) for name in imported) for package in ON_THE_PAGE), "no longer shared"
