"""Provides `onnx_file`: a small ONNX file made of nodes; OPERATORS: nodes of every operator, in their forms."""

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IMAGE, VECTOR, SEQUENCE = ("batch", 4, 6, 5), ("batch", 5), ("batch", 2, 9)
RANDOM = np.random.default_rng(0)


@dataclass(frozen=True)
class Net:
    """Nodes as (operator, inputs, attributes); each takes "x" or "y1", "y2", ..., the results so far, and constants."""

    name: str
    nodes: list
    shape: tuple = IMAGE
    constants: dict = field(default_factory=dict)
    opset: int = 20


def numbers(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def model_of(net):
    nodes = [
        helper.make_node(operator, inputs, [f"y{n}", *_more_results(n, attributes)], name=f"node{n}", **attributes)
        for n, (operator, inputs, attributes) in enumerate(net.nodes, start=1)
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in net.constants.items()]
    ends = (
        helper.make_tensor_value_info("x", TensorProto.FLOAT, net.shape),
        helper.make_tensor_value_info(f"y{len(nodes)}", TensorProto.FLOAT, None),
    )
    graph = helper.make_graph(nodes, "net", [ends[0]], [ends[1]], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", net.opset)])
    model.ir_version = 9
    inferred = onnx.shape_inference.infer_shapes(model).graph.output[0]
    is_inferred = inferred.type.tensor_type.HasField("shape")
    shape = inferred if is_inferred else helper.make_tensor_value_info(inferred.name, TensorProto.FLOAT, net.shape)
    model.graph.output[0].CopyFrom(shape)
    return model


def _more_results(number, attributes):
    count = attributes.get("num_outputs", len(attributes.get("split", [0])))
    return [f"y{number}_{k}" for k in range(1, count)]


def onnx_file(net, folder):
    """Return the path of the file of a net."""
    path = folder / "net.onnx"
    onnx.save(model_of(net), path)
    return path


def one(operator, *inputs, name="", shape=IMAGE, opset=20, constants=None, **attributes):
    """Return a net of one node. Inputs behind the first are constants, arrays or names of `constants`."""
    arrays = {f"c{n}": value for n, value in enumerate(inputs) if not isinstance(value, str)}
    names = [value if isinstance(value, str) else f"c{n}" for n, value in enumerate(inputs)]
    names = names if "x" in names else ["x", *names]
    node = (operator, names, attributes)
    return Net(f"{operator} {name}".strip(), [node], shape, arrays | (constants or {}), opset)


def integers(*values):
    return np.array(values, dtype=np.int64)


KERNEL, BIAS, MATRIX, TRANSPOSED = numbers(3, 4, 3, 2), numbers(3), numbers(5, 3), numbers(4, 3, 3, 2)
NORM = [numbers(4), numbers(4), numbers(4), np.abs(numbers(4)) + 0.1]
OPERATORS = [
    one("Conv", KERNEL),
    one("Conv", KERNEL, BIAS, name="strides, pads", strides=[2, 1], pads=[1, 1, 1, 1]),
    one("Conv", KERNEL, BIAS, name="uneven pads", pads=[1, 0, 2, 1]),
    one("Conv", KERNEL, name="same, upper", auto_pad="SAME_UPPER", strides=[2, 2]),
    one("Conv", numbers(3, 2, 3), BIAS, name="sequences", shape=SEQUENCE, pads=[2, 1], strides=[2], dilations=[2]),
    one("Conv", numbers(6, 2, 2), name="sequences, same", shape=SEQUENCE, auto_pad="SAME_UPPER"),
    one("Conv", numbers(6, 2, 3, 3), name="groups", group=2, dilations=[2, 1], pads=[2, 1, 2, 1]),
    one("Gemm", MATRIX, BIAS, shape=VECTOR),
    one("Gemm", MATRIX.T.copy(), numbers(1, 3), name="transposed", transB=1, shape=VECTOR),
    one("MatMul", MATRIX, shape=VECTOR),
    one("MatMul", MATRIX, name="last dimension"),
    one("BatchNormalization", *NORM, epsilon=1e-3),
    one("BatchNormalization", *NORM, name="old", opset=9),
    one("Add", numbers(4, 1, 1)),
    one("Add", "x", "x", name="itself"),
    one("Sub", numbers(5)),
    one("Sub", numbers(4, 1, 1), "x", name="constant first"),
    one("Mul", numbers(1)),
    one("Mul", numbers(4, 1, 1), "x", name="constant first"),
    one("Div", numbers(1, 4, 1, 1)),
    one("Relu"),
    one("LeakyRelu", alpha=0.3, name="alpha"),
    one("Sigmoid"),
    one("Tanh"),
    one("Sign"),
    one("ConvTranspose", TRANSPOSED),
    one("ConvTranspose", TRANSPOSED, BIAS, name="strides", strides=[2, 1], pads=[1, 0, 1, 0], output_padding=[1, 0]),
    one("ConvTranspose", numbers(4, 2, 3, 3), name="groups", group=2, dilations=[2, 1]),
    one("AveragePool", name="padded", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    one("AveragePool", name="counted", kernel_shape=[3, 3], pads=[1, 0, 0, 1], count_include_pad=1),
    one("MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
    one("MaxPool", name="padded", kernel_shape=[3, 2], pads=[1, 1, 1, 1], strides=[2, 1]),
    one("GlobalAveragePool"),
    one("ReduceMean", integers(-1, -2)),
    one("ReduceMean", name="of opset 13", opset=13, axes=[2, 3]),
    one("Flatten"),
    one("Flatten", name="from the end", axis=-3),
    one("Reshape", integers(-1, 120)),
    one("Reshape", integers(0, 5, -1), name="copied"),
    one("Squeeze", integers(1), shape=("batch", 1, 5)),
    one("Squeeze", name="old", axes=[2], shape=("batch", 5, 1), opset=11),
    one("Unsqueeze", integers(1, 3), shape=VECTOR),
    one("Transpose", perm=[0, 2, 3, 1]),
    one("Pad", integers(0, 0, 1, 2, 0, 0, 0, 3)),
    one("Pad", integers(0, 1, 0, 0, 0, 2, 0, 0), np.float32(0.3), name="channels, a number"),
    one("Pad", integers(1, 2), "", integers(-1), name="axes"),
    one("Pad", name="old", pads=[0, 0, 0, 1, 0, 0, 0, 0], value=0.5, opset=9),
    one("Slice", integers(0, -3), integers(2**40, 2**40), integers(0, 2), integers(1, 2), name="steps"),
    one("Slice", integers(4), integers(-(2**40)), integers(3), integers(-2), name="backwards"),
    one("Slice", name="old", starts=[0, 1], ends=[2**40, -1], axes=[0, 3], opset=9),
    one("Gather", integers(3, 0, -1), name="a list", axis=-1),
    one("Gather", np.array([[0, 1], [1, 2]]), name="a matrix", axis=1, shape=VECTOR),
    Net("Split", [("Split", ["x"], {"axis": 3, "num_outputs": 3}), ("Concat", ["y1_2", "y1"], {"axis": 3})]),
    Net("Split old", [("Split", ["x"], {"axis": -3, "split": [1, 3]}), ("Sub", ["y1_1", "y1"], {})], opset=11),
    one("Abs"),
    one("Neg"),
    one("Clip", np.float32(-0.3), np.float32(0.7)),
    one("Clip", name="old, one limit", min=-np.inf, max=0.1, opset=9),
    one("Dropout"),
    one("Identity"),
    Net("Concat", [("Relu", ["x"], {}), ("Concat", ["x", "y1", "x"], {"axis": 1})]),
    Net("Sub of two values", [("Relu", ["x"], {}), ("Sub", ["x", "y1"], {})]),
    Net("Constant", [("Constant", [], {"value": numpy_helper.from_array(BIAS[0])}), ("Mul", ["y1", "x"], {})]),
    Net("Constant shape", [("Constant", [], {"value_ints": [0, -1]}), ("Reshape", ["x", "y1"], {})]),
    Net("constants moved", [
        ("Transpose", ["w"], {}), ("Identity", ["y1"], {}),
        ("Unsqueeze", ["y2", "a"], {}), ("Squeeze", ["y3", "a"], {}), ("Flatten", ["x"], {}),
        ("MatMul", ["y5", "y4"], {}), ("Reshape", ["b", "s"], {}), ("Add", ["y6", "y7"], {}),
    ], constants={"w": numbers(3, 120), "a": integers(0), "b": numbers(1, 1, 3), "s": integers(3)}),
    Net("bias of a convolution", [("Conv", ["x", "w"], {}), ("Add", ["b", "y1"], {})],
        constants={"w": KERNEL, "b": numbers(1, 3, 1, 1)}),
    Net("bias of a value used twice", [("MatMul", ["x", "w"], {}), ("Add", ["y1", "b"], {}), ("Sub", ["y2", "y1"], {})],
        VECTOR, {"w": MATRIX, "b": BIAS}),
    Net("bias behind dropout", [
        ("MatMul", ["x", "w"], {}), ("Dropout", ["y1"], {}), ("Add", ["y2", "b"], {}), ("Sub", ["y3", "y1"], {})
    ], VECTOR, {"w": MATRIX, "b": BIAS}),
    Net("two biases", [("MatMul", ["x", "w"], {}), ("Add", ["y1", "b"], {}), ("Add", ["b", "y2"], {})],
        VECTOR, {"w": MATRIX, "b": BIAS}),
]  # fmt: skip
