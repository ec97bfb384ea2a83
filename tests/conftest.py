"""Shared by all tests: one thread, fixed seeds, the small data set, tiny trials."""

import dataclasses

import pytest
import torch

from harness.config.settings import EvaluationSettings, TrainSettings
from harness.config.trial import TrialConfig

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny_trial():
    """A function of changed fields to a trial of a few seconds on the digits."""

    def make(model: str = "cnn5", **changes) -> TrialConfig:
        train = {"epochs": 3, "batch_size": 64, "ramp_start": 1, "ramp_epochs": 2, "decay_epochs": ()}
        train |= changes.pop("train", {})
        config = TrialConfig(
            sweep="tiny",
            profile="full",
            dataset="digits",
            eps="1/32",
            seed=0,
            model=model,
            method="ibp",
            width=0.1,
            train_images=320,
            train=TrainSettings(**train),
            evaluation=EvaluationSettings(
                stages=("ibp", "crown-ibp"), test_images=60, attack_steps=5, attack_restarts=1, batch_size=40
            ),
        )
        return dataclasses.replace(config, **changes)

    return make
