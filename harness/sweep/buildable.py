"""Whether a trial can run, and which of its settings change nothing: found out without computing anything."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

import torch
from torch import nn

from baselines import build
from cerdeq.bounds import BOUNDS, trace
from cerdeq.equilibrium import FixedPoint
from cerdeq.equilibrium.weights import Parametrisation
from harness.common.errors import InputError, error_line, require
from harness.methods import make_method
from harness.settings import RAMP, STAGES_BY_SETTING, TrainSettings
from harness.sweep.trial_config import TrialConfig

MOST_PARAMETERS = 500_000_000
"""Of a network; they take 2 GB in float32."""


def check_buildable(config: TrialConfig) -> nn.Module:
    """Build the network without memory, look up the bound rules that training and evaluation need, and return it.

    Raises InputError as `build_without_values` does, for an operator without a rule, and for a mean or deviation of
    another number of channels.
    """
    method, linear = None, needs_linear(config.evaluation.stages)
    with _method_errors():
        if not config.is_trained_elsewhere:
            method = make_method(config.method, config.method_options)
            linear = method.linear or linear
    network = build_without_values(config)
    with _input_errors(config):
        program = trace(network.eval(), linear)
    with _method_errors():
        if method is not None:
            method.check(program)
    channels = config.data_info.shape[0]
    for name in ("mean", "std"):
        values = getattr(config.train, name)
        is_right = values is None or len(values) == channels
        require(f"train.{name}", list(values or ()), is_right, f"a number for each channel, {channels} in all")
    return network


def build_without_values(config: TrialConfig) -> nn.Module:
    """Return the network on torch's device 'meta', where it takes no memory.

    Raises InputError for an option that does not exist or is out of range, for more than MOST_PARAMETERS, and for
    anything else that a user's network raises where tensors have no values.
    """
    with _input_errors(config), torch.device("meta"):
        network = build(config.model, config.data_info, config.width, **config.options)
        count, most = sum(parameter.numel() for parameter in network.parameters()), MOST_PARAMETERS
        if count > most:
            advice = f"lower `width`, here {config.width:g}, or an option"
            raise ValueError(f"found a network of {count:,} parameters, allowed: at most {most:,}; {advice}")
    return network


@contextmanager
def _method_errors() -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InputError(f"method_options: {error}") from None


@contextmanager
def _input_errors(config: TrialConfig) -> Iterator[None]:
    """Within, every error of the network becomes an InputError that names the key."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InputError(f"options: {error}") from None
    except Exception as error:
        cause = error_line(error)
        raise InputError(f"model: {config.model!r} cannot be built on torch's device 'meta': {cause}") from None


def needs_linear(stages: tuple[str, ...]) -> bool:
    """Return whether any of the verifier's stages needs backward rules."""
    return any(stage not in BOUNDS or BOUNDS[stage].linear for stage in stages)


def ignored_settings(config: TrialConfig, network: nn.Module) -> dict[str, str]:
    """Return the settings and options that change nothing in a trial, by dotted key, each with the reason.

    network: the trial's, on any device. Evaluation settings: `ignored_evaluation`.
    """
    if config.is_trained_elsewhere:
        reason = "the network is trained elsewhere"
        return {f"train.{setting.name}": reason for setting in fields(TrainSettings)}
    method, train, modules = make_method(config.method, config.method_options), config.train, list(network.modules())
    equilibria = [module for module in modules if isinstance(module, FixedPoint)]
    has_batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules)
    by_method = {
        f"{'method_options' if name in vars(method) else 'train'}.{name}": f"{config.method!r}: {reason}"
        for name, reason in method.ignored().items()
        if name not in RAMP or not _follows_eps(modules)
    }
    no_ramp = train.ramp_start == 1 and train.ramp_epochs == 0
    needs_ramp = "it matters only while eps grows, and there is no ramp"
    unrolled = bool(equilibria) and all(module.is_unrolled for module in equilibria) and not method.linear
    no_bounds = bool(equilibria) and "regularisation" in method.ignored()
    facts = [  # setting, whether it changes nothing, the reason; the first reason counts
        ("train.decay_factor", not train.decay_epochs, "there are no decay_epochs"),
        ("train.regularise_equilibria", not train.regularisation, "regularisation is 0"),
        ("train.regularise_equilibria", no_ramp, needs_ramp),
        ("train.regularise_equilibria", not equilibria, f"{config.model!r}: it has no equilibrium"),
        ("train.regularisation", no_ramp, needs_ramp),
        ("train.kappa_start", no_ramp, needs_ramp),
        ("train.ramp_shape", train.ramp_epochs == 0, "there is no ramp: ramp_epochs is 0"),
        ("train.recompute_statistics", not has_batch_norm, f"{config.model!r}: it has no batch norm"),
        ("options.early_iterations", equilibria and no_ramp, needs_ramp),
        ("options.margin_start", equilibria and no_ramp, needs_ramp),
        ("options.backward_iterations", unrolled, "the gradient is that of the iterations themselves"),
        (
            "options.warm_start",
            no_bounds,
            f"{config.method!r}: this method computes no bounds, so warm_start has no effect",
        ),
    ]
    return {name: reason for name, is_ignored, reason in reversed(facts) if is_ignored} | by_method


def ignored_evaluation(config: TrialConfig) -> dict[str, str]:
    """Return the evaluation settings that change nothing in a trial, by dotted key, each with the reason."""
    ignored = {}
    if config.validation_images:
        ignored["evaluation.test_images"] = "validation_images are evaluated instead of test images"
    for name, users in STAGES_BY_SETTING.items():
        if set(users).isdisjoint(config.evaluation.stages):
            ignored[f"evaluation.{name}"] = f"stages has none of {', '.join(users)}"
    return ignored


def _follows_eps(modules: list[nn.Module]) -> bool:
    """Return whether anything in a network changes as eps grows."""
    iterations = [module.range for module in modules if isinstance(module, FixedPoint)]
    margins = [module.margins for module in modules if isinstance(module, Parametrisation)]
    return any(first != last for first, last in [*iterations, *margins])
