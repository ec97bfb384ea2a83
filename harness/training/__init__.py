"""Certified training of one network, from config to result."""

from harness.folder import TrialResult
from harness.settings import TrialConfig
from harness.training.loop import NonFiniteLossError
from harness.training.trial import load_network, run_trial

__all__ = ["NonFiniteLossError", "TrialConfig", "TrialResult", "load_network", "run_trial"]
