"""How a training's steps are computed: compiled or eager, and in which precision.

A rule decides it once, from the recipe and the kind of device, before the first step: never a clock, nor an error that
was caught. The network's folder holds what was decided; a training that continues keeps to it.
"""

import logging
from pathlib import Path

import torch

from harness.common.errors import InputError
from harness.config.training import Training
from harness.machine.device import has_bf16
from harness.settings import Precision, Recipe
from harness.storage.folder import TRAINING_WARNINGS
from harness.storage.training_progress import Decisions, add_lines, read_decisions, write_decisions
from harness.training.compilation import compiler_problem

WORTH_COMPILING = 10_000
"""From how many steps of a training on `compile: auto` compiles. It saves .01 s a step on a GPU, and as much on a CPU
if the network is small; compiling takes one to three minutes (docs/gpu-cost.md, docs/cpu-cost.md)."""

_log = logging.getLogger(__name__)


def decide_steps(config: Training, images: int, device: torch.device, network_dir: Path) -> Decisions:
    """Return what steps.json says, after writing it at the start of a training on so many images.

    Raises InputError if this machine cannot compute steps so.
    """
    if (decisions := read_decisions(network_dir)) is None:
        steps = config.train.epochs * (images // config.train.batch_size)
        decisions = Decisions(
            compile=_is_compiled(config.train, steps, device, network_dir),
            precision=_precision_on(device, config.train.precision),
        )
        write_decisions(network_dir, decisions)
    _refuse_other_machine(decisions, device, network_dir)
    _log.info("%s steps in %s", "compiled" if decisions.compile else "eager", decisions.precision)
    if decisions.precision == "bf16" and not has_bf16(device):
        _warn(network_dir, "bf16 is slow here: this device has no instructions for it; precision float32 avoids that")
    return decisions


def _is_compiled(recipe: Recipe, steps: int, device: torch.device, network_dir: Path) -> bool:
    if recipe.compile != "auto":
        return recipe.compile == "always"
    if steps < WORTH_COMPILING:
        return False
    if (problem := compiler_problem(device.type)) is None:
        return True
    _warn(network_dir, f"steps are eager, which takes longer: {problem}")
    return False


def _precision_on(device: torch.device, precision: Precision) -> Precision:
    """Return the precision that products have on a device: a CPU computes them in float32 where TF32 is allowed."""
    return "float32" if precision == "tf32" and device.type == "cpu" else precision


def _refuse_other_machine(decisions: Decisions, device: torch.device, network_dir: Path) -> None:
    if decisions.compile and (problem := compiler_problem(device.type)) is not None:
        raise InputError(
            f"the steps of this training are compiled, and {problem}; train.compile=never trains without it"
        )
    if _precision_on(device, decisions.precision) != decisions.precision:
        advice = f"continue it on a GPU, or remove {network_dir} to train it from the start"
        raise InputError(f"this training began on a GPU, in TF32, which a CPU does not have; {advice}")


def _warn(network_dir: Path, message: str) -> None:
    """Log a warning; the result's warnings have it, too."""
    _log.warning(message)
    add_lines(network_dir / TRAINING_WARNINGS, [message])
