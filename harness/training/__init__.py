"""Certified training of one network, from config to weights and verdicts."""

from harness.config.training import Training
from harness.settings import Evaluation
from harness.storage.records import Result
from harness.training.loop import NonFiniteLossError
from harness.training.train import train

__all__ = ["Evaluation", "NonFiniteLossError", "Result", "Training", "train"]
