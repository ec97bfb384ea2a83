"""With PRETEND_VALUES=1, what trains and certifies runs with values on the pretended GPU, in every process.

Trials run in threads of Ray's workers and modes are a thread's own, so that the calls themselves are wrapped, as soon
as their modules are there.
"""

import functools
import importlib.abc
import importlib.machinery
import os
import sys

CALLS = {
    "harness.training.trial": ["run_trial", "run_folder"],
    "harness.launch.ray_tasks": ["_within_share"],
    "harness.search.rungs": ["run_candidate"],
}


class _Wrapping(importlib.abc.Loader, importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in CALLS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        self.loaders[name] = spec.loader
        spec.loader = self
        return spec

    loaders: dict = {}  # noqa: RUF012

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        self.loaders[module.__name__].exec_module(module)
        for name in CALLS[module.__name__]:
            setattr(module, name, _with_values(getattr(module, name)))


def _with_values(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        from values import Values

        with Values():
            return function(*args, **kwargs)

    return call


if os.environ.get("PRETEND_VALUES") == "1":
    sys.meta_path.insert(0, _Wrapping())
