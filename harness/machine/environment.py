"""Describe where a number was computed: machine, versions, code."""

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("torch", "numpy", "pandas", "ray", "mlflow")


def cache_directory() -> Path:
    """Return the directory of decoded data and compiled code, which need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cerdeq"


def data_directory(option: str | Path | None = None) -> Path:
    """Return the folder of data sets: `option` (--data-dir), or the environment variable CERDEQ_DATA, or ./data."""
    return Path(option or os.environ.get("CERDEQ_DATA") or "data").expanduser()


def describe_environment(device: torch.device) -> dict[str, str]:
    """Return device, threads, Python and package versions, and the code's commit."""
    return {
        "device": device_name(device),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **{package: installed for package in _PACKAGES if (installed := _version(package))},
        "code": code_version(),
    }


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or the kind of CPU with the vector instructions that torch uses, such as AVX512."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def code_version() -> str:
    """Return the commit of this checkout, with '-dirty' if files differ from it; 'unknown' outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.check_output(
            command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True, timeout=10
        ).strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@cache
def source_digest() -> str:
    """Return 16 hex digits of a digest of this project's source, the same in every directory."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    packages = ("cerdeq", "baselines", "harness")
    for path in sorted(path for package in packages for path in (root / package).rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
