"""Certified training of one network, from config to result."""

from harness.storage.folder import TrialResult
from harness.sweep.trial_config import TrialConfig
from harness.training.loop import NonFiniteLossError
from harness.training.trial import load_network, run_folder, run_trial

__all__ = ["NonFiniteLossError", "TrialConfig", "TrialResult", "load_network", "run_folder", "run_trial"]
