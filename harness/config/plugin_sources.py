"""The sources of plugins: their modules, and all that these import from folders of the user. Nothing is imported."""

import ast
import hashlib
import importlib.util
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

_PROJECT = ("baselines", "cerdeq", "harness")
_INSTALLED = {"site-packages", "dist-packages"}


@cache
def digest(plugin: str, module: str = "") -> str:
    """Return sixteen hex digits of the sources of a plugin and of a module below it.

    Comments, docstrings and layout do not count. An imported module does not change with its files: hence each process
    computes this once.
    """
    content = hashlib.sha256()
    for name, path in sorted(source_files(plugin, *([module] if module else [])).items()):
        source = _without_comments(path)
        content.update(f"{name} {len(source)}\n".encode() + source)
    return content.hexdigest()[:16]


def source_files(*modules: str) -> dict[str, Path]:
    """Return the files of modules, and of all that they import from folders of the user, by the names of the modules.

    Python's own modules, those of this project and installed ones are left out, except the modules' own packages.
    Imports that code computes are not seen.
    """
    queue, seen, files = list(modules), set[str](), dict[str, Path]()
    packages = {name.partition(".")[0] for name in modules}
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        if parent := name.rpartition(".")[0]:
            queue.append(parent)
        spec = _spec(name)
        path = Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None
        if path is None or not (name.partition(".")[0] in packages or _is_of_user(name, path)):
            continue
        files[name] = path
        queue += _imports(path, name if path.name == "__init__.py" else parent)
    return files


def _is_of_user(name: str, path: Path) -> bool:
    python = (Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib"))
    is_python_s = any(path.resolve().is_relative_to(directory) for directory in python)
    return name.partition(".")[0] not in _PROJECT and not is_python_s and _INSTALLED.isdisjoint(path.parts)


def _spec(name: str) -> ModuleSpec | None:
    """Return where a module is; None if there is none."""
    parent = name.rpartition(".")[0]
    try:
        if not parent:
            return importlib.util.find_spec(name)
        package = _spec(parent)
    except ValueError:  # of `__main__`
        return None
    locations = package.submodule_search_locations if package else None
    return None if locations is None else PathFinder.find_spec(name, list(locations))


def _imports(path: Path, package: str) -> Iterator[str]:
    """Yield the modules that a file of a package may import, by their whole names; what it imports from them, too."""
    for node in ast.walk(_tree(path) or ast.Module([], [])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def _tree(path: Path) -> ast.Module | None:
    """Return a file's syntax tree; None for a compiled module, and for one with an error, which importing it says."""
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return None


def _without_comments(path: Path) -> bytes:
    """Return a file's syntax tree as text, without docstrings; its bytes if it has none."""
    tree = _tree(path)
    return path.read_bytes() if tree is None else repr(_content(tree)).encode()


def _content(node: object) -> object:
    """Return a part of a syntax tree as tuples. Python's versions differ in what they add to it when it is empty."""
    if isinstance(node, list):
        return [_content(each) for each in node if not _is_text(each)]
    if isinstance(node, ast.JoinedStr):  # Python 3.12 adds empty texts
        return "JoinedStr", [_content(each) for each in node.values if getattr(each, "value", None) != ""]
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
        return type(node).__name__, *((name, _content(value)) for name, value in fields)
    return node


def _is_text(node: object) -> bool:
    """Return whether a statement is a text alone, such as a docstring: it does nothing."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
