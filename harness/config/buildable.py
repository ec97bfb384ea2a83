"""Whether a network can be trained and evaluated, and which settings change nothing, without computing anything."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from baselines import build
from baselines.shared_tensors import refuse_shared_memory
from cerdeq.bounds import BOUNDS, trace
from cerdeq.equilibrium import FixedPoint
from cerdeq.equilibrium.weights import Parametrisation
from harness.common.errors import InputError, error_line, located, require
from harness.config.training import Training
from harness.methods import make_method
from harness.settings import RAMP, Evaluation, EvaluationSettings, Recipe, stages_by_setting

MOST_PARAMETERS = 500_000_000
"""Of a network; they take 2 GB in float32."""


def check_buildable(training: Training, evaluations: Iterable[Evaluation]) -> nn.Module:
    """Build the network without memory, look up the bound rules that training and evaluations need, and return it.

    Raises InputError as `build_without_values` does, for an operator without a rule, for two
    parameters in one memory, for a mean or deviation of another number of channels, and for a teacher that has such
    faults or does not fit.
    """
    linear = any(needs_linear(evaluation.stages) for evaluation in evaluations)
    with _errors_of("method_options"):
        method = None if training.is_trained_elsewhere else make_method(training.method, training.method_options)
    network = build_without_values(training)
    with _errors_of("model"):
        refuse_shared_memory(network)
    with _errors_of("options", training.model):
        program = trace(network.eval(), linear or (method is not None and method.linear))
    teacher = None
    if training.teacher is not None:
        with located("method_options.teacher."):
            teacher = trace(check_buildable(training.teacher, ()).eval())
    with _errors_of("method_options"):
        if method is not None:
            method.check(program, teacher)
    channels = training.data_info.shape[0]
    for name in ("mean", "std"):
        values = getattr(training.train, name)
        is_right = values is None or len(values) == channels
        require(f"train.{name}", list(values or ()), is_right, f"a number for each channel, {channels} in all")
    return network


def build_without_values(training: Training) -> nn.Module:
    """Return the network on torch's device 'meta', where it takes no memory.

    Raises InputError for an option that does not exist or is out of range, for more than MOST_PARAMETERS, and for
    anything else that a user's network raises where tensors have no values.
    """
    with _errors_of("options", training.model), torch.device("meta"):
        network = build(training.model, training.data_info, training.width, **training.options)
        count, most = sum(parameter.numel() for parameter in network.parameters()), MOST_PARAMETERS
        if count > most:
            advice = f"lower `width`, here {training.width:g}, or an option"
            raise ValueError(f"found a network of {count:,} parameters, allowed: at most {most:,}; {advice}")
    return network


@contextmanager
def _errors_of(section: str, model: str = "") -> Iterator[None]:
    """Within, errors of a network or method become InputError with the key. model: whose other errors do, too."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InputError(f"{section}: {error}") from None
    except Exception as error:
        if not model:
            raise
        cause = error_line(error)
        raise InputError(f"model: {model!r} cannot be built on torch's device 'meta': {cause}") from None


def needs_linear(stages: tuple[str, ...]) -> bool:
    """Return whether any of the verifier's stages needs backward rules."""
    return any(stage not in BOUNDS or BOUNDS[stage].linear for stage in stages)


def unused_evaluation_settings(settings: EvaluationSettings, validation_images: int) -> dict[str, str]:
    """Return the settings of an evaluation that change nothing, each with the reason.

    validation_images: the sweep's.
    """
    unused = {
        name: f"stages has none of {', '.join(users)}"
        for name, users in stages_by_setting(settings.certificates).items()
        if set(users).isdisjoint(settings.stages)
    }
    if validation_images:
        unused["test_images"] = "validation_images are evaluated instead of test images"
    return unused


def unused_settings(training: Training, network: nn.Module) -> dict[str, str]:
    """Return the settings and options that change nothing in a training, by dotted key, each with the reason.

    network: of the training, on any device.
    """
    if training.is_trained_elsewhere:
        return {f"train.{name}": "the network is trained elsewhere" for name in Recipe.model_fields}
    unused = dict[str, str]()
    method, train, modules = (
        make_method(training.method, training.method_options),
        training.train,
        list(network.modules()),
    )
    equilibria = [module for module in modules if isinstance(module, FixedPoint)]
    for name, reason in method.ignored().items():
        if name not in RAMP or not _follows_eps(modules):
            unused[f"{'method_options' if name in vars(method) else 'train'}.{name}"] = f"{training.method!r}: {reason}"
    if not train.decay_epochs:
        unused["train.decay_factor"] = "there are no decay_epochs"
    if not train.regularisation:
        unused["train.regularise_equilibria"] = "regularisation is 0"
    if not equilibria:
        unused["train.regularise_equilibria"] = f"{training.model!r} has no equilibrium"
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules):
        unused["train.recompute_statistics"] = f"{training.model!r} has no batch norm"
    if train.ramp_epochs == 0:
        unused["train.ramp_shape"] = "there is no ramp: ramp_epochs is 0"
    if train.ramp_epochs == 0 and train.ramp_start == 1:
        growing = ["train.regularisation", "train.regularise_equilibria", "train.kappa_start"]
        growing += ["options.early_iterations", "options.margin_start"] if equilibria else []
        unused |= dict.fromkeys(growing, "it matters only while eps grows, and there is no ramp")
    if equilibria and all(module.is_unrolled for module in equilibria) and not method.linear:
        unused["options.backward_iterations"] = "the gradient is that of the iterations themselves"
    if equilibria and "regularisation" in method.ignored():
        unused["options.warm_start"] = f"{training.method!r} computes no bounds"
    return unused


def _follows_eps(modules: list[nn.Module]) -> bool:
    """Return whether anything in a network changes as eps grows."""
    iterations = [module.iteration_range for module in modules if isinstance(module, FixedPoint)]
    margins = [module.margins for module in modules if isinstance(module, Parametrisation)]
    return any(first != last for first, last in [*iterations, *margins])
