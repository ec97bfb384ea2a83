"""Smaller parts of a batch, for when memory runs out."""

from dataclasses import replace

from harness.config.trial import TrialConfig
from harness.errors import SettingError


def divide_batches(config: TrialConfig, split: int) -> TrialConfig:
    """Return the config with each part of a batch in `split` parts. Raises SettingError if that is impossible."""
    return replace(config, train=replace(config.train, accumulate=split * config.train.accumulate))


def can_divide(config: TrialConfig, split: int) -> bool:
    """Return True if each part of a batch can be divided into `split` parts."""
    try:
        divide_batches(config, split)
    except SettingError:
        return False
    return True
