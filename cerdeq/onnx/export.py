"""A network written as an ONNX file: torch's exporter, on the steps that bounds see."""

import copy
from pathlib import Path

import torch
from onnxscript import optimizer
from torch import Tensor, nn

from cerdeq.errors import OnnxError, UnsupportedOperator
from cerdeq.tracing.precisions import differing_step, with_constants_of
from cerdeq.tracing.program import Program, Step
from cerdeq.tracing.refusals import refuse_training
from cerdeq.tracing.trace import trace

_OPSET, _IR_VERSION = 18, 8  # of 2022 and 2021: tools of these years read them
_EXAMPLES = 2  # of the batch that torch traces


class _Steps(nn.Module):
    """Runs the steps of a program."""

    def __init__(self, program: Program):
        super().__init__()
        self.program = program
        layers = [step.target for step in program.steps if isinstance(step.target, nn.Module)]
        self.layers = nn.ModuleList(layers)  # whose tensors the file stores by name

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs [B, ...] of inputs x."""
        values = [x]
        for step in self.program.steps:
            values.append(step.run(values))
        return values[self.program.output]


def exact_float32_copy(network: nn.Module) -> nn.Module:
    """Return the network, or of one in float64 a copy with the same numbers in float32.

    Raises OnnxError for a number that float32 does not hold, or that the network computes differently there.
    """
    if all(tensor.dtype != torch.float64 for tensor in network.state_dict().values()):
        return network
    rounded = copy.deepcopy(network).float()

    def equal(step: Step, a: Tensor, b: Tensor) -> Tensor | bool:
        return a.shape == b.shape and (a.double() == b.double()).all()

    try:
        step = differing_step(trace(network), trace(rounded), equal)
    except (UnsupportedOperator, ValueError) as error:
        raise OnnxError(f"the network cannot be written: {error}") from None
    if step is not None:
        found = f"{step.where}: found numbers in float64 that the file, in float32, would not have"
        raise OnnxError(f"{found}; to write them rounded, call .float() first")
    return rounded


def write_file(network: nn.Module, path: Path, input_shape: tuple[int, ...]) -> None:
    """Write a network to an ONNX file, for batches of any size. Raises OnnxError as `export_onnx` says.

    The file has the numbers of the network: constants that it computes from others are computed before.
    """
    for name, tensor in network.state_dict().items():
        is_float32 = tensor.dtype == torch.float32 or not tensor.is_floating_point()
        if not is_float32 or tensor.device.type != "cpu":
            raise OnnxError(f"{name}: found {tensor.dtype} on {tensor.device}, allowed: torch.float32 on cpu")
    try:
        refuse_training(network)
        program = trace(network)
        steps = _Steps(with_constants_of(program, program, torch.float32)).eval()
    except (UnsupportedOperator, ValueError) as error:
        raise OnnxError(f"the network cannot be written: {error}") from None
    for step in program.steps:
        if step.record is not None and step.record.refine is not None:  # an equation is solved
            raise OnnxError(f"no ONNX operator for {step.where}")
    example = torch.zeros(_EXAMPLES, *input_shape, dtype=torch.float32)
    try:
        written = torch.onnx.export(
            steps, (example,), dynamo=True, opset_version=_OPSET, input_names=["input"], output_names=["output"],
            dynamic_shapes=({0: torch.export.Dim("batch")},), optimize=False, verbose=False,
        )  # fmt: skip
        assert written is not None
        optimizer.fold_constants(written.model)
        optimizer.remove_unused_nodes(written.model)
        written.model.ir_version = _IR_VERSION
        written.save(path)
    except RuntimeError as error:
        raise OnnxError(f"the network cannot be written: {' '.join(str(error).split())[:300]}") from None
