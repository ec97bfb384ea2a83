"""Explicit networks, and the registry of all networks by name."""

from baselines import cnn, densenet, mondeq, resnet, resnext, tied, wideresnet
from baselines.datasets import DATASETS, Dataset
from baselines.registry import UnknownNameError, build, names, options_of, register
from cerdeq import models

register("cerdeq")(models.cerdeq)
register("deqlate")(models.deqlate)
register("deq7")(models.deq7)

__all__ = [
    "DATASETS",
    "Dataset",
    "UnknownNameError",
    "build",
    "cnn",
    "densenet",
    "mondeq",
    "names",
    "options_of",
    "register",
    "resnet",
    "resnext",
    "tied",
    "wideresnet",
]
