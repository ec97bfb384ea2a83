"""Explicit networks, and the registry of all networks by name."""

from baselines.datasets import DATASETS, Dataset
from baselines.registry import build, check_network_name, network_names, options_of, register, required_options
from baselines.unknown_names import UnknownNameError, UnknownOptionError, refuse_unknown_options, suggestion
