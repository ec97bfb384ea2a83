"""ONNX files: every operator against onnxruntime, bounds against its outputs, and what is refused."""

import gzip
import os

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_files import BIAS, KERNEL, MATRIX, NORM, OPERATORS, VECTOR, Net, integers, model_of, numbers, one, onnx_file
from oracles import assert_contains, points_of, random_box
from torch import nn

import cerdeq.onnx.file
from cerdeq import Box, OnnxError, bound, load_onnx
from cerdeq.onnx import load_content, read_content
from cerdeq.onnx.operators import LAYERS
from harness.checker.bounds.network import read_network


def by_onnxruntime(path, x):
    """Return outputs of points x, one at a time: as of a file that is for one input."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(np.concatenate([session.run(None, {"x": point[None].numpy()})[0] for point in x]))


def test_every_operator_has_a_net():
    operators = {node[0] for net in OPERATORS for node in net.nodes}
    assert operators - {"Constant"} == LAYERS.keys() - {"Softmax"}


@pytest.mark.parametrize("net", OPERATORS, ids=lambda net: net.name)
def test_operators_compute_and_bound_what_onnxruntime_computes(net, tmp_path):
    """The bounds of CROWN are of the same network, which goes another way there than `forward`."""
    path = onnx_file(net, tmp_path)
    network = load_onnx(path)
    shape = tuple(size for size in net.shape[1:])
    assert network.input_shape == shape and not any(module.training for module in network.modules())
    box = random_box(3, *shape, dtype=torch.float32)
    points = points_of(box, 20)
    expected = by_onnxruntime(path, points.flatten(0, 1)).unflatten(0, (20, 3))
    with torch.no_grad():
        torch.testing.assert_close(network(points.flatten(0, 1)), expected.flatten(0, 1), rtol=1e-4, atol=1e-5)
    for method in ("ibp", "crown"):
        lower, upper = bound(network, box, method)
        assert_contains(lower, upper, expected, 1e-5)
    lower, upper = bound(network.double(), Box(box.center.double(), torch.zeros(3, *shape).double()))
    assert (upper - lower).max() < 1e-9


def test_slices_take_what_onnxruntime_takes(tmp_path):
    """A backwards one that starts before element 0 takes element 0, unlike Python's."""
    random, refused = np.random.default_rng(0), 0
    ends = [*range(-9, 10), 2**40, -(2**40), -(2**63)]
    steps = [1, 2, 7, -1, -2, -7]
    for start, end, step in [(random.choice(ends), random.choice(ends), random.choice(steps)) for _ in range(40)]:
        path = onnx_file(one("Slice", *map(integers, (start, end, 1, step)), shape=(1, 5)), tmp_path)
        x = torch.rand(1, 5)
        expected = by_onnxruntime(path, x)
        if expected.numel():
            assert torch.equal(load_onnx(path)(x), expected), (start, end, step)
        else:
            refused += 1
            with pytest.raises(OnnxError, match="found a result without numbers"):
                load_onnx(path)
    assert 5 < refused < 35


def test_a_bias_becomes_part_of_its_layer(tmp_path):
    """So that the last layer is one that margins are merged with, by bounds and by the checker."""
    net = Net("mlp", [("Flatten", ["x"], {}), ("MatMul", ["y1", "w"], {}), ("Add", ["y2", "b"], {})],
              constants={"w": numbers(120, 3), "b": BIAS})  # fmt: skip
    network = load_onnx(onnx_file(net, tmp_path))
    assert [type(module) for module in network.children()] == [nn.Flatten, nn.Linear]
    assert len(read_network(network.double()).steps) == 2


def test_a_network_is_loaded_with_weights_on_every_default_device_and_draws_no_random_numbers(tmp_path):
    path, before = onnx_file(one("Conv", KERNEL), tmp_path), torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            network = load_onnx(path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}
    assert torch.equal(torch.get_rng_state(), before)


REFUSED = {
    r"operators Erf at node 'node1', node 'node3'; Floor at node 'node2'. Supported operators: Abs, Add": Net(
        "", [("Erf", ["x"], {}), ("Floor", ["y1"], {}), ("Erf", ["y2"], {})]
    ),
    r"operators Sigmoid of constants at node 'node1'; Expand at node 'node3'\.": Net(
        "",
        [("Sigmoid", ["c"], {}), ("Add", ["x", "y1"], {}), ("Expand", ["y2", "s"], {})],
        constants={"c": BIAS[:1], "s": integers(5, 4, 6, 5)},
    ),
    "remove it: certify the logits": one("Softmax"),
    "alpha = 2.0, allowed: 1.0": one("Gemm", MATRIX, BIAS, alpha=2.0, shape=VECTOR),
    "a value and a constant": Net("", [("Relu", ["x"], {}), ("Mul", ["x", "y1"], {})]),
    r"operator Sub at node 'node3': found values of shapes \[2\] and \[2, 2\]": Net(
        "",
        [("MatMul", ["x", "w"], {}), ("Squeeze", ["y1", "axis"], {}), ("Sub", ["y2", "x"], {})],
        ("batch", 2, 2),
        {"w": numbers(2, 1), "axis": integers(2)},
    ),
    "the same for all examples": one("Add", numbers(2, 4, 6, 5)),
    "times a constant matrix": one("MatMul", numbers(2, 6), "x", shape=("batch", 6, 5)),
    "allowed: images": one("Conv", numbers(3, 4, 2, 2), shape=("batch", 4, 6)),
    r"found inputs of shape \[4, 5\]": Net(
        "", [("Reshape", ["x", "s"], {}), ("Gemm", ["y1", "w"], {})], (1, 20), {"s": integers(4, 5), "w": MATRIX}
    ),
    "the batch, first": one("Transpose", perm=[1, 0, 2, 3]),
    "0 of the batch": one("Pad", integers(1, 0, 0, 0, 0, 0, 0, 0)),
    "mode = 'reflect'": one("Pad", integers(0, 0, 1, 0, 0, 0, 0, 0), mode="reflect"),
    r"padding \(1, 0\) before and \(0, 0\) after": one("AveragePool", kernel_shape=[2, 2], pads=[1, 0, 0, 0]),
    "training_mode = 1": one("BatchNormalization", *NORM, training_mode=1),
    "negative variance": one("BatchNormalization", *NORM[:3], -NORM[3]),
    "does not depend on the input": Net("", [("Identity", ["c"], {})], constants={"c": numbers(1, 3)}),
    "opset 6, allowed: 7": one("Relu", opset=6),
    r"node 'node1': found values of shapes \[\[4, 6, 5\]\], which Conv2d\(5, 3": one("Conv", numbers(3, 5, 3, 3)),
    "2147483648.*allowed: up to 67108864 numbers": one("Relu", shape=("batch", 2**31)),
    "constants of up to 1099511627776 numbers": Net(
        "", [("ConstantOfShape", ["s"], {}), ("Add", ["x", "y1"], {})], constants={"s": integers(2**20, 2**20, 1)}
    ),
    "found 2097152000 numbers as results": one("MatMul", numbers(1, 2000), shape=("batch", 2**20, 1)),
    "torch cannot run it|does not take": one("AveragePool", kernel_shape=[2, 2], strides=[2**62, 1]),
    "64064016000000 products": one("AveragePool", kernel_shape=[4000, 4000], shape=("batch", 1, 6000, 6000)),
    "found outputs of onnxruntime that are infinite": Net(
        "",
        [("MatMul", ["x", "w"], {}), ("MatMul", ["y1", "v"], {})],
        VECTOR,
        {"w": np.full((5, 5), 3e20, np.float32), "v": np.full((5, 2), -3e20, np.float32)},
    ),
    "a batch of 7": one("Relu", shape=(7, 3)),
    "DOUBLE, allowed: FLOAT": one("Add", np.ones(5)),
    "operator Constant at node 'node1': attribute 'value_float': found NaN": Net(
        "", [("Constant", [], {"value_float": np.inf}), ("Add", ["x", "y1"], {})]
    ),
    "attribute 'value': found NaN or infinity": one("Pad", pads=[0, 0, 0, 1, 0, 0, 0, 0], value=np.inf, opset=9),
    "found a result without numbers": Net(
        "",
        [("Slice", ["x", "s", "e", "a", "t"], {}), ("Concat", ["x", "y1"], {"axis": 1})],
        VECTOR,
        {"s": integers(3), "e": integers(2**63 - 1), "a": integers(1), "t": integers(-1)},  # onnxruntime takes 4
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_has_no_layer_is_refused_by_name(message, tmp_path):
    path = onnx_file(REFUSED[message], tmp_path)
    with pytest.raises(OnnxError, match=message) as refusal:
        load_onnx(path)
    assert str(refusal.value).startswith(f"{path}: ")


def second_input(model):
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ("batch", 3)))


def newer_opset(model):
    model.opset_import[0].version = 999


def own_operator(model):
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def second_output_used(model):
    model.graph.node[0].CopyFrom(helper.make_node("Dropout", ["x"], ["y", "y1"]))


def replaced_operator(model):
    nodes = [helper.make_node("Relu", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("com.example", "Conv", ["a", "w"], ["b"], nodes, opsets))


def external_attribute(model):
    tensor = numpy_helper.from_array(numbers(3))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=tensor))
    stored = model.graph.node[0].attribute[0].t
    stored.ClearField("raw_data")
    stored.data_location = TensorProto.EXTERNAL
    stored.external_data.add(key="location", value="weights.bin")


def lost_node(model):
    del model.graph.node[0]


DAMAGED = {
    "found 2 inputs and 1 outputs": second_input,
    "found opset 999": newer_opset,
    "no layer for the operators com.example.Conv at node 'node1'": own_operator,
    r"operator Dropout at node 'number 1': another node reads the outputs \['y1'\]": second_output_used,
    "found its own operator 'Conv'": replaced_operator,
    r"found external data|not a valid ONNX model: .*weights\.bin": external_attribute,
    "not a valid ONNX model": lost_node,
}


@pytest.mark.parametrize("message", DAMAGED)
def test_damaged_files_are_refused(message, tmp_path):
    model = model_of(one("Conv", KERNEL))
    DAMAGED[message](model)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(OnnxError, match=message):
        load_onnx(tmp_path / "net.onnx")


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"no network", None], ids=["empty", "zeros", "text", "folder"])
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "net.onnx"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(OnnxError, match=r"net\.onnx: not a"):
        load_onnx(path)
    with pytest.raises(OnnxError, match=r"other\.onnx: cannot be read: No such file"):
        load_onnx(tmp_path / "other.onnx")


ANY_BATCH = [
    *(one(name, shape=VECTOR[1:]) for name in ("Relu", "LeakyRelu", "Abs", "Sigmoid", "Tanh", "Sign")),
    one("MatMul", MATRIX, shape=VECTOR[1:]),
    one("MatMul", MATRIX.T.copy(), "x", name="matrix first", shape=VECTOR[1:]),
    one("Add", BIAS, shape=(1,)),
    one("Unsqueeze", integers(0), shape=VECTOR[1:]),
    one("Reshape", integers(-1, 60)),
    one("Reshape", integers(1, -1)),
    one("Reshape", integers(-1), shape=(1, 4, 6, 5)),
    one("Flatten", axis=0),
    Net("Gemm", [("Unsqueeze", ["x", "a"], {}), ("Gemm", ["y1", "w", "b"], {}), ("Squeeze", ["y2", "a"], {})],
        VECTOR[1:], {"a": integers(0), "w": MATRIX, "b": BIAS}),
]  # fmt: skip


@pytest.mark.parametrize("net", ANY_BATCH, ids=str)
def test_files_without_a_batch_are_read_as_for_one_input(net, tmp_path):
    path = onnx_file(net, tmp_path)
    network, session = load_onnx(path), onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    points = torch.rand(3, *network.input_shape)
    full = tuple(1 if size == "batch" else size for size in net.shape)
    expected = [session.run(None, {"x": point.reshape(full).numpy()})[0].ravel() for point in points]
    torch.testing.assert_close(network(points).flatten(1), torch.from_numpy(np.stack(expected)))
    lower, upper = bound(network, Box(points, torch.zeros_like(points)), "crown")
    assert torch.allclose(lower, upper, atol=1e-4)


def test_shapes_that_the_file_computes_are_constants_and_other_nodes_are_not_read(tmp_path):
    """As `x.view(x.size(0), -1)` is exported."""
    net = Net("", [
        ("Shape", ["x"], {}), ("Gather", ["y1", "zero"], {"axis": 0}), ("Unsqueeze", ["y2", "a"], {}),
        ("Sigmoid", ["x"], {}), ("Mul", ["y1", "y1"], {}), ("Concat", ["y3", "rest"], {"axis": 0}),
        ("Reshape", ["x", "y6"], {}), ("Gather", ["b", "zero"], {"axis": 0}), ("Add", ["y7", "y8"], {}),
    ], constants={"zero": np.array(0), "a": integers(0), "rest": integers(-1), "b": numbers(2, 120)})  # fmt: skip
    network = load_onnx(onnx_file(net, tmp_path))
    assert [type(layer).__name__ for layer in network.children()] == ["Flatten", "WithConstant"]
    x = torch.rand(2, 4, 6, 5)
    assert torch.equal(network(x), x.flatten(1) + torch.from_numpy(net.constants["b"][0]))


def test_packed_files_are_read_and_pointers_named(tmp_path, monkeypatch):
    path, packed = onnx_file(one("Conv", KERNEL), tmp_path), tmp_path / "net.onnx.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    x = torch.rand(1, 4, 6, 5)
    assert torch.equal(load_onnx(packed)(x), load_onnx(path)(x))
    monkeypatch.setattr(cerdeq.onnx.file, "LARGEST_FILE", 100_000)
    packed.write_bytes(gzip.compress(bytes(1_000_000)))
    with pytest.raises(OnnxError, match="allowed: up to"):
        load_onnx(packed)
    packed.write_bytes(gzip.compress(path.read_bytes())[:-9])
    with pytest.raises(OnnxError, match="cannot be unpacked"):
        load_onnx(packed)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(OnnxError, match="a Git LFS pointer"):
        load_onnx(path)


def test_a_large_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "net.onnx"
    with path.open("wb") as file:
        file.truncate(1_000_000_000)  # takes no room
    with pytest.raises(OnnxError, match="found 1000 MB, allowed: up to 500 MB"):
        load_onnx(path)


def test_external_data_is_read_and_counted(tmp_path, monkeypatch):
    path, weight = tmp_path / "net.onnx", numbers(120, 30)
    net = Net("", [("Flatten", ["x"], {}), ("MatMul", ["y1", "w"], {})], constants={"w": weight})
    onnx.save(model_of(net), path, save_as_external_data=True, location="weights.bin")
    assert torch.equal(load_onnx(path).matmul2.weight, torch.from_numpy(weight.T))
    before = read_content(path)
    assert torch.equal(load_content(before, "copy").matmul2.weight, torch.from_numpy(weight.T)), "one file of all"
    (tmp_path / "weights.bin").write_bytes(numbers(120, 30).tobytes())
    assert read_content(path) != before, "a digest covers the data"
    monkeypatch.setattr(cerdeq.onnx.file, "LARGEST_FILE", 4000)
    with pytest.raises(OnnxError, match="allowed: up to"):
        load_onnx(path)


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "device", "above", "absolute"])
@pytest.mark.timeout(20)
def test_external_data_elsewhere_is_refused(kind, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    onnx.save(model_of(one("Conv", KERNEL)), folder / "net.onnx", save_as_external_data=True, location="weights.bin",
              size_threshold=0)  # fmt: skip
    load_onnx(folder / "net.onnx")
    data, elsewhere = folder / "weights.bin", tmp_path / "weights.bin"
    data.rename(elsewhere)
    location = {"above": "../weights.bin", "absolute": str(elsewhere), "device": "/dev/zero"}.get(kind, "weights.bin")
    make = {"link": lambda: data.symlink_to(elsewhere), "folder": data.mkdir, "pipe": lambda: os.mkfifo(data)}
    make.get(kind, lambda: None)()
    model = onnx.load(folder / "net.onnx", load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(OnnxError, match="external data cannot be read"):
        load_onnx(folder / "net.onnx")


def test_a_network_that_was_read_wrongly_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(LAYERS, "LeakyRelu", lambda node: nn.LeakyReLU(0.02))
    with pytest.raises(OnnxError, match=r"they differ by up to 0\.0"):
        load_onnx(onnx_file(one("LeakyRelu"), tmp_path))
