"""With PRETEND_VALUES=1, what trains and evaluates runs with values on the pretended GPU, in every process.

Jobs run in threads of Ray's workers and modes are a thread's own, so that the calls themselves are wrapped, as soon
as their modules are there. With PRETEND_LOG=DIRECTORY each call writes a file there: which GPUs its process sees.
"""

import functools
import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
from pathlib import Path

CALLS = {"harness.work.jobs": ["do_job"]}


class _Wrapping(importlib.abc.Loader, importlib.abc.MetaPathFinder):
    loaders: dict = {}  # noqa: RUF012

    def find_spec(self, name, path=None, target=None):
        if name not in CALLS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        self.loaders[name] = spec.loader
        spec.loader = self
        return spec

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        self.loaders[module.__name__].exec_module(module)
        for name in CALLS[module.__name__]:
            setattr(module, name, _with_values(getattr(module, name)))


def _with_values(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        import torch.utils._python_dispatch as dispatch
        from values import Values, uncaptured_values

        if "PRETEND_LOG" in os.environ:
            _log(function.__name__)
        if any(isinstance(mode, Values) for mode in dispatch._get_current_dispatch_mode_stack()):
            return function(*args, **kwargs)  # twice would take for ever
        with uncaptured_values():
            return function(*args, **kwargs)

    return call


def _log(call):
    """Write which GPUs this process sees, and its share of their memory."""
    import torch

    seen = {
        "call": call,
        "process": os.getpid(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "count": torch.cuda.device_count(),
        "share": torch.cuda.get_per_process_memory_fraction() if torch.cuda.is_available() else None,
    }
    path = Path(os.environ["PRETEND_LOG"]) / f"{time.time_ns()}-{os.getpid()}.json"
    path.write_text(json.dumps(seen))


if os.environ.get("PRETEND_VALUES") == "1":
    sys.meta_path.insert(0, _Wrapping())
