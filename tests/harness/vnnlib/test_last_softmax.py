"""Files that end in Softmax: answered by their logits where a property compares outputs, refused otherwise."""

import json
from functools import partial

import numpy as np
import pytest
import small_properties
from onnx_writer import export_onnx
from small_properties import INPUTS, OUTPUTS, network_of, smallest_violation

from harness.checker.properties import NotConfirmedError, confirm_sat, refuse_other_than_order
from harness.command_line import main
from harness.common.errors import InputError
from harness.vnnlib.brackets import parse
from harness.vnnlib.files import load_instance, property_in
from harness.vnnlib.solve import solve_files
from harness.vnnlib.version1 import property_of

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

text_of = partial(small_properties.text_of, low=-1, high=1, inputs=INPUTS, outputs=OUTPUTS)


def write_files(folder, seed, constraints, nodes=(("Softmax", {}),), scale=1):
    """Write a network, whose last layer is scaled, with these nodes behind it, and a property; return their paths."""

    network, weights = network_of(seed)
    for numbers, parameter in zip(weights[2:], list(network[2].parameters()), strict=True):
        numbers *= scale
        parameter.data *= scale
    paths = folder / f"{seed}.onnx", folder / f"{seed}.vnnlib"
    export_onnx(network, paths[0], (INPUTS,))
    model = onnx.load(paths[0])
    for number, (operator, attributes, *constants) in enumerate(nodes):
        before, name = model.graph.output[0].name, f"behind{number}"
        names = [f"{name}_{n}" for n in range(len(constants))]
        for constant, its_name in zip(constants, names, strict=True):
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([constant]), its_name))
        model.graph.node.append(onnx.helper.make_node(operator, [before, *names], [name], **attributes))
        model.graph.output[0].name = name
    onnx.save(model, paths[0])
    paths[1].write_text(text_of(constraints))
    return *paths, weights


def order_of(random):
    """Return random constraints that compare outputs: a disjunction of conjunctions."""
    parts = []
    for _ in range(random.integers(1, 3)):
        atoms = []
        for _ in range(random.integers(1, 3)):
            a, b = random.permutation(OUTPUTS)[:2]
            factor = random.choice(["(* 3 Y_{})", "(+ Y_{} 0.0)", "Y_{}"])
            atoms.append(f"({random.choice(['<=', '>='])} {factor.format(a)} {factor.format(b)})")
        parts.append(f"(and {' '.join(atoms)})")
    return f"(or {' '.join(parts)})"


def test_answers_are_those_of_the_logits_and_are_confirmed(tmp_path):
    """The oracle enumerates the signs of ReLUs of the network without Softmax."""
    expected, rows = [], []
    endings = [[("Softmax", {})], [("Softmax", {"axis": 1}), ("Identity", {}), ("Flatten", {})]]
    for seed in range(6):
        constraints, scale = order_of(np.random.default_rng(seed)), 4096 if seed % 3 == 2 else 1
        network, text, weights = write_files(tmp_path, seed, constraints, endings[seed % 2], scale)
        violation = min(smallest_violation(weights, case) for case in property_in(text.read_bytes(), text).cases)
        if abs(violation) > 1e-5:
            expected.append("sat" if violation < 0 else "unsat")
            rows.append(f"{network.name},{text.name},60\n")
    (tmp_path / "list.csv").write_text("".join(rows))
    assert main("verify", [str(tmp_path / "list.csv"), "--results-dir", str(tmp_path / "out"), "--workers", "1"]) == 0
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "out/instances").glob("*.json"))]
    answers = [record["result"] for record in records]
    assert answers == expected and {"sat", "unsat"} <= set(expected)
    outputs = json.loads((tmp_path / f"out/instances/{answers.index('sat') + 1:05}.json").read_text())["counterexample"]
    values = [float(line.split()[1].rstrip(")")) for line in outputs.splitlines() if "Y_" in line]
    assert abs(sum(values) - 1) < 1e-5, "the stored outputs are those of the whole file"
    assert main("recheck", [str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("constraint", [
    "(<= Y_0 0.5)", "(<= Y_0 (* 2 Y_1))", "(<= Y_0 (+ Y_1 0.1))", "(<= (+ Y_0 Y_1) Y_2)", "(<= (+ Y_0 Y_1) 0.0)",
    "(and (<= Y_0 Y_1) (or (<= Y_1 Y_2) (<= Y_2 0.5)))", "(<= Y_0 0)",
])  # fmt: skip
def test_other_constraints_are_refused_by_reader_and_checker(constraint, tmp_path):
    network, text, _ = write_files(tmp_path, 0, constraint)
    with pytest.raises(
        InputError, match=r"operator Softmax at node .*: not supported.*each constraint .* compares two"
    ):
        solve_files(network, text, 10)
    with pytest.raises(NotConfirmedError, match="does not compare two outputs"):
        refuse_other_than_order(property_in(text.read_bytes(), text))


def test_the_checker_allows_what_the_reader_drops():
    for seed in range(30):
        property_ = property_of(parse(text_of(order_of(np.random.default_rng(seed)))))
        assert property_.is_order
        refuse_other_than_order(property_)


@pytest.mark.parametrize("nodes", [
    [("Softmax", {}), ("Relu", {})], [("Softmax", {"axis": 0})], [("Softmax", {}), ("Softmax", {})],
    [("Unsqueeze", {}, 2), ("Softmax", {"axis": 1}), ("Flatten", {})],
    [("Unsqueeze", {}, 2), ("Softmax", {"axis": 2}), ("Flatten", {})],
])  # fmt: skip
def test_another_softmax_is_refused(nodes, tmp_path):
    """Not the last, over the batch, twice, and of values that are no vector."""
    network, text, _ = write_files(tmp_path, 0, "(<= Y_0 Y_1)", nodes)
    with pytest.raises(InputError, match="operator Softmax at node"):
        solve_files(network, text, 10)


def test_a_softmax_that_ties_in_float32_changes_no_order(tmp_path):
    """Logits are (0, -200, -400) everywhere: both others are 0 in float32, but Y_1 > Y_2 in real arithmetic."""
    network, text, _ = write_files(tmp_path, 0, "(<= Y_1 Y_2)")
    model = onnx.load(network)
    for tensor in model.graph.initializer:
        numbers = onnx.numpy_helper.to_array(tensor)
        logits = np.array([0, -200, -400], np.float32) if numbers.shape == (OUTPUTS,) else 0 * numbers
        tensor.CopyFrom(onnx.numpy_helper.from_array(logits, tensor.name))
    onnx.save(model, network)
    assert solve_files(network, text, 10).status == "unsat"
    text.write_text(text_of("(<= Y_2 Y_1)"))
    answer = solve_files(network, text, 10)
    assert answer.counterexample.outputs == ["1.0", "0.0", "0.0"]
    property_, loaded = load_instance((network.read_bytes(), text.read_bytes()), (network, text))
    confirm_sat(property_, loaded.network, loaded.run, answer.counterexample_text, loaded.run_file)
    for outputs, reason in (((1, 0, 1e-6), "no case is proved to hold"), ((0.9, 0, 0.1), "the stored outputs are not")):
        with pytest.raises(NotConfirmedError, match=reason):
            confirm_sat(
                property_, loaded.network, loaded.run, answer.counterexample_text, lambda _, y=outputs: np.array([y])
            )
