"""Builds the pretended GPU and runs Python on it: `python tests/pretended_gpu/pretended.py ARGUMENTS OF PYTHON...`."""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
_SOURCES = {  # by library: its sources, and what it links to
    "libpretended.so": ["state.c", "runtime.c", "libraries.c"],
    "libcuda.so.1": ["driver.c", "driver_rest.c"],
    "libnvidia-ml.so.1": ["nvml.c"],
}

_HEADERS = ("cuda_runtime_api.h", "crt/host_defines.h")  # of torch's packages, and of Triton


def is_pretending() -> bool:
    """Return whether this process is on pretended GPUs."""
    return "libpretended.so" in os.environ.get("LD_PRELOAD", "")


@functools.cache
def problem() -> str | None:
    """Why the pretended GPU cannot be built here, in a line; None where it can."""
    if shutil.which("gcc") is None:
        return "needs gcc"
    missing = [name for name in _HEADERS if not _folder_of(name)]
    return f"needs {', '.join(missing)} of torch's CUDA 13 packages" if missing else None


def built() -> Path:
    """The folder of the stand-in libraries, built once for each state of their sources."""
    files = sorted(HERE.glob("*.[ch]"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"pretended-gpu-{os.getuid()}-{digest}"
    if folder.exists():
        return folder
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    includes = [f"-I{_folder_of(name)}" for name in _HEADERS]
    for library, sources in _SOURCES.items():
        flags = ["-w", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", *includes]
        command = ["gcc", *flags, *(str(HERE / source) for source in sources), "-o", str(scratch / library), "-ldl"]
        subprocess.run(command, check=True, capture_output=True, text=True)
    (scratch / "libcuda.so").symlink_to("libcuda.so.1")
    scratch.chmod(0o755)
    try:
        scratch.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(scratch)
    return folder


def environment(**pretended: str) -> dict[str, str]:
    """The environment of a process that sees pretended GPUs. pretended: PRETEND_... variables, see README.md."""
    folder = built()
    libraries = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")]))
    modules = os.pathsep.join(
        [str(HERE / "site"), str(ROOT), str(ROOT / "tests/harness/training"), str(ROOT / "tests/harness"), str(HERE)]
    )
    own = {
        "LD_PRELOAD": str(folder / "libpretended.so"),
        "LD_LIBRARY_PATH": libraries,
        "PYTHONPATH": modules,
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }
    return os.environ | own | pretended


def run_python(
    *arguments: str, timeout: float = 280, cwd: Path = ROOT, **pretended: str
) -> subprocess.CompletedProcess:
    """Run this Python with arguments on pretended GPUs; what it printed is text."""
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env=environment(**pretended), capture_output=True, text=True, timeout=timeout, cwd=cwd
    )


def _folder_of(header: str) -> Path | None:
    """Where a header lies among the environment's packages, as it is included."""
    packages = Path(sysconfig.get_paths()["purelib"])
    directories = [*packages.glob("nvidia/*/include"), packages / "triton/backends/nvidia/include"]
    return next((directory for directory in directories if (directory / header).exists()), None)


if __name__ == "__main__":
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], environment())
