"""Explicit networks, and the registry of all networks by name."""

import importlib
import pkgutil

from baselines.datasets import DATASETS, Dataset
from baselines.registry import (
    UnknownNameError,
    UnknownOptionError,
    build,
    network_names,
    options_of,
    refuse_unknown_options,
    register,
    required_options,
    unknown_network,
)

for _name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_name}")  # importing a module registers its networks
