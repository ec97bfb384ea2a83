"""Explicit networks, and the registry of all networks by name."""

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
    suggestion,
    unknown_network,
)
