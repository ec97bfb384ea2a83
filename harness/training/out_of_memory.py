"""What is done where memory runs out."""

from dataclasses import replace

from harness.config.trial import TrialConfig
from harness.errors import SettingError


def divided(config: TrialConfig, split: int) -> TrialConfig:
    """The config with each part of a batch in so many parts. Raises SettingError where it cannot be divided so."""
    return replace(config, train=replace(config.train, accumulate=split * config.train.accumulate))


def divides(config: TrialConfig, split: int) -> bool:
    """Whether each part of a batch can be taken in so many parts."""
    try:
        divided(config, split)
    except SettingError:
        return False
    return True
