"""Certified training of one network, from config to result."""

from harness.config.trial import Trial
from harness.storage.folder import TrialResult
from harness.training.loop import NonFiniteLossError
from harness.training.trial import load_network, train_and_certify

__all__ = ["NonFiniteLossError", "Trial", "TrialResult", "load_network", "train_and_certify"]
