"""Settings that a trial's network, training or judging ignores: who sets one believes in what is not so."""

from torch import nn

from cerdeq.equilibrium import FixedPoint
from cerdeq.equilibrium.weights import Parametrisation
from harness.config.settings import JUDGING_BY_STAGE
from harness.config.trial import TrialConfig
from harness.methods import Method, make_method

_RAMP = ("ramp_start", "ramp_epochs")
_EARLY = ("early_iterations", "margin_start")


def ignored_settings(config: TrialConfig, network: nn.Module) -> dict[str, str]:
    """The recipe's settings and the method's options that change nothing in a trial, by their dotted keys, and why.

    network: the trial's, on any device.
    """
    method = make_method(config.method, config.method_options)
    by_method = dict(method.ignored())
    if _follows_eps(network):
        for key in _RAMP:
            by_method.pop(key, None)
    options = [key for key in by_method if key in vars(method)]
    found = {f"method_options.{key}": f"{config.method!r}: {by_method.pop(key)}" for key in options}
    found |= {f"train.{key}": f"{config.method!r}: {reason}" for key, reason in by_method.items()}
    modules = list(network.modules())
    if not config.train.decay_epochs:
        found["train.decay_factor"] = "there are no decay_epochs"
    if not config.train.regularisation:
        found.setdefault("train.regularise_equilibria", "regularisation is 0")
    if not _has_ramp(config):
        found.setdefault("train.regularisation", "it falls to 0 as eps grows, and there is no ramp")
        found.setdefault("train.regularise_equilibria", "regularisation falls to 0 as eps grows, and there is no ramp")
    equilibria = [module for module in modules if isinstance(module, FixedPoint)]
    if equilibria:
        found |= _ignored_options(config, method, equilibria)
    else:
        found.setdefault("train.regularise_equilibria", f"{config.model!r}: there is no equilibrium in it")
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules):
        found["train.recompute_statistics"] = f"{config.model!r}: there is no batch norm in it"
    return found


def _ignored_options(config: TrialConfig, method: Method, equilibria: list[FixedPoint]) -> dict[str, str]:
    """Options of networks with equilibria; another network's of the same name are its own."""
    found: dict[str, str] = {}
    if not _has_ramp(config):
        found |= {f"options.{key}": "it changes as eps grows, and there is no ramp" for key in _EARLY}
    if all(module.unrolled for module in equilibria) and not method.linear:
        found["options.backward_iterations"] = "its gradient is that of the iterations themselves"
    if "regularisation" in method.ignored():
        found["options.warm_start"] = f"{config.method!r}: it bounds nothing, and lifted solves are there for bounds"
    return found


def ignored_judgement(config: TrialConfig) -> dict[str, str]:
    """The settings of judging that change nothing in a trial, by their dotted keys, and why."""
    found = {}
    if config.validation_images:
        found["evaluation.test_images"] = "validation_images are judged instead of test images"
    for key, users in JUDGING_BY_STAGE.items():
        if set(users).isdisjoint(config.evaluation.stages):
            told = f"{users[0]!r} is not" if len(users) == 1 else f"none of {', '.join(users)} is"
            found[f"evaluation.{key}"] = f"{told} in stages"
    return found


def _has_ramp(config: TrialConfig) -> bool:
    """Whether any step is at less than the whole eps."""
    return config.train.ramp_start > 1 or config.train.ramp_epochs > 0


def _follows_eps(network: nn.Module) -> bool:
    """Whether anything in a network changes as eps grows."""
    modules = list(network.modules())
    counts = [module.range for module in modules if isinstance(module, FixedPoint)]
    margins = [module.margins for module in modules if isinstance(module, Parametrisation)]
    return any(first != last for first, last in [*counts, *margins])
