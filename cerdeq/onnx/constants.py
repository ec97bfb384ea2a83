"""Results of nodes whose inputs are all constant, computed by onnxruntime: moves of numbers, and arithmetic of shapes.

Arithmetic of float32 is not done here: a rounded result would be another network in real arithmetic.
"""

from math import prod

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from cerdeq.errors import OnnxError
from cerdeq.onnx.file import MOST_VALUES

_GROWING = {"ConstantOfShape", "Expand", "Tile"}  # the last input says how many numbers the result has
_CHOICES = {"Gather", "Where"}
_JOINED = {"Concat", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
_MOVES = _JOINED | _CHOICES | _GROWING
_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Neg", "Min", "Max", "ReduceProd", "Cast", "Equal"}
_LARGEST = 2**31  # an integer of arithmetic: results of 64 bits do not overflow
_INTEGERS = (TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL)
SHAPES = {"Shape", "Size"}  # of values, too
FOLDED = _MOVES | _ARITHMETIC | SHAPES | {"Constant"}


def fold(node: onnx.NodeProto, inputs: list[np.ndarray | None], model: onnx.ModelProto) -> np.ndarray:
    """Return the first result of a node of constants. Raises OnnxError for arithmetic of other numbers than integers.

    inputs: None for an optional one that is left out. model: that the node belongs to.
    """
    arrays = {name: array for name, array in zip(node.input, inputs, strict=True) if array is not None}
    if node.op_type not in _MOVES | SHAPES:
        _refuse_inexact(node, list(arrays.values()))
    _refuse_large(node.op_type, list(arrays.values()))
    feeds = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in arrays.items()
    ]
    graph = helper.make_graph([node], "constants", feeds, [helper.make_empty_tensor_value_info(node.output[0])])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    small = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        session = onnxruntime.InferenceSession(small.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, arrays)[0]
    except Exception as error:  # onnxruntime's errors share no class
        raise OnnxError(f"onnxruntime cannot compute it: {' '.join(str(error).split())[:300]}") from None


def _refuse_inexact(node: onnx.NodeProto, arrays: list[np.ndarray]) -> None:
    """Raise OnnxError unless a node of arithmetic is exact: its inputs and its result are integers."""
    is_exact = node.op_type in _ARITHMETIC and all(
        array.dtype.kind in "ib" and ((array > -_LARGEST) & (array < _LARGEST)).all() for array in arrays
    )
    to_other = [a.i for a in node.attribute if a.name == "to" and a.i not in _INTEGERS]
    if not is_exact or to_other or (node.op_type == "Div" and not arrays[1].all()):
        allowed = f"{', '.join(sorted(_MOVES))}; of integers also {', '.join(sorted(_ARITHMETIC))}"
        raise OnnxError(f"found only constant inputs; of constants are allowed: {allowed}")


def _refuse_large(operator: str, arrays: list[np.ndarray]) -> None:
    """Raise OnnxError if a result may have too many numbers."""
    sizes = [array.size for array in arrays]
    if operator in _GROWING:
        sizes[-1] = prod(max(1, int(size)) for size in arrays[-1].flat)
    most = sum(sizes) if operator in _JOINED else prod(sizes)
    if most > MOST_VALUES:
        raise OnnxError(f"found constants of up to {most} numbers, allowed: up to {MOST_VALUES}")
