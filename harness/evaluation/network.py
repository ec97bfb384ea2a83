"""The trained network of a trial's folder."""

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from baselines import build
from cerdeq.equilibrium import fold
from harness.config.trial import TrialConfig


def load_network(config: TrialConfig, weights: Path) -> nn.Sequential:
    """The trained network whose folded weights lie in a safetensors file: float64, in evaluation mode."""
    model = build(config.model, config.dataset, config.width, **config.options)
    fold(model)
    model.load_state_dict(load_file(weights))
    return model.double().eval()
