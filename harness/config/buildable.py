"""Whether a trial can run at all, found out without computing anything."""

import torch
from torch import nn

from baselines import build
from cerdeq.bounds import BOUNDS, trace
from harness.config.settings import BAB
from harness.config.trial import TrialConfig
from harness.errors import InputError
from harness.methods import make_method


def check_buildable(config: TrialConfig) -> nn.Module:
    """Build the network without memory, look up every rule that training and judging it will need, and return it.

    Raises ValueError or TypeError for a network, method or option that this code does not have, or not so;
    UnsupportedOperator (a TypeError) for an operator of the network without a rule; InputError for whatever else a
    network of a user's raises where tensors have no values.
    """
    try:
        with torch.device("meta"):
            network = build(config.model, config.dataset, config.width, **config.options)
        method = make_method(config.method, config.method_options)
        trace(network.eval(), linear=method.linear or needs_linear(config.evaluation.stages))
    except (TypeError, ValueError):
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"model: {config.model!r} cannot be built on torch's device 'meta': {told}") from None
    return network


def needs_linear(stages: tuple[str, ...]) -> bool:
    """Whether any of the verifier's stages needs backward rules."""
    return any(stage == BAB or BOUNDS[stage].linear for stage in stages)
