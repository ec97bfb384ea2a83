"""Certified training of one network, from config to weights and verdicts."""

from harness.config.training import Training
from harness.settings import Evaluation
from harness.storage.records import Result
from harness.training.loop import NonFiniteLossError
from harness.training.train import train
from harness.training.train_and_evaluate import train_and_evaluate

__all__ = ["Evaluation", "NonFiniteLossError", "Result", "Training", "train", "train_and_evaluate"]
