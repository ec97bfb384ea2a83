"""Certified training of one network, from config to result."""

from harness.config.trial import Trial
from harness.storage.folder import TrialResult
from harness.training.loop import NonFiniteLossError
from harness.training.trial import load_network, run_folder, run_trial

__all__ = ["NonFiniteLossError", "Trial", "TrialResult", "load_network", "run_folder", "run_trial"]
