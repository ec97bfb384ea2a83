"""The trained network of a folder, and what its evaluation needs of it."""

import copy
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load
from torch import Tensor, nn

from baselines import build
from baselines.shared_tensors import complete, differing_names
from cerdeq.bounds import Program, refuse_other_precision, trace
from cerdeq.bounds.float32 import in_float32
from cerdeq.equilibrium import fold, use_attack_solvers
from cerdeq.tracing.refusals import refuse_training
from harness.common.errors import InputError
from harness.config.buildable import build_without_values, needs_linear
from harness.config.training import Training
from harness.storage.files import parse_file


@dataclass(frozen=True)
class PreparedNetwork:
    """A network as its evaluation needs it.

    model: float64, in evaluation mode. program: its steps, for bounds. program_float32: the same in float32, or None
    if the network cannot be bounded in float32. attack_model: a float32 copy with less exact equilibria.
    classes: how many logits it has.
    """

    model: nn.Module
    program: Program
    program_float32: Program | None
    attack_model: nn.Module
    classes: int


def load_network(config: Training, weights: Path, content: bytes | None = None) -> nn.Sequential:
    """Return the trained network, float64 and in evaluation mode, from a safetensors file of folded weights.

    content: of the file, if it has been read. Raises InputError for tensors that are not the network's, since torch
    would round other types silently, and for two values of a tensor that the network has under two names; and as
    `build_without_values` does, before it takes memory.
    """
    build_without_values(config)
    model = build(config.model, config.data_info, config.width, **config.options)
    fold(model)
    state = complete(parse_file(weights, load, content), model)
    if problems := check_tensors(state, model.state_dict()) or differing_names(state, model):
        raise InputError(f"{weights}: {problems[0]}")
    model.load_state_dict(state)
    return model.double().eval()


def check_tensors(stored: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Check that tensors have the names, types and shapes of the network's; return a line for each that has not."""
    problems = [f"the tensor {name} is missing" for name in expected if name not in stored]
    problems += [f"the tensor {name} is not the network's" for name in stored if name not in expected]
    kinds = {name: (_kind(tensor), _kind(expected[name])) for name, tensor in stored.items() if name in expected}
    return problems + [
        f"{name} is {found}, expected {right}" for name, (found, right) in kinds.items() if found != right
    ]


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def prepare_network(model: nn.Module, stages: tuple[str, ...], classes: int) -> PreparedNetwork:
    """Prepare a float64 network in evaluation mode for the verifier's stages. classes: how many logits it has.

    Raises ValueError in training mode, and UnsupportedOperator if it is another function in float32, as it was trained.
    """
    refuse_training(model)
    linear = needs_linear(stages)
    program = trace(model, linear)
    refuse_other_precision(trace(copy.deepcopy(model).float(), linear), program)
    attack_model = copy.deepcopy(model)
    use_attack_solvers(attack_model)
    attack_model.float().requires_grad_(False)
    return PreparedNetwork(model, program, in_float32(model, linear), attack_model, classes)
