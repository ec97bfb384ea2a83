"""Counterexamples as VNN-COMP 2026 reads them: the rules of its scorer, in a reader of the tests' own.

Its repository is VNN-COMP/vnncomp2026_results, SCORING. What it cannot read counts as wrong.
"""

import math
import re

import numpy as np
import onnxruntime
import pytest
import torch
from onnx_writer import export_onnx
from small_properties import with_weights
from torch import nn

from harness.command_line import main

vnnlib = pytest.importorskip("vnnlib")

HEADER = re.compile(r"(\S+)\s+(\S+)\s+\[([0-9,\s]*)\]")
TYPES = {"F32": ("float32", "real"), "Real": ("real",)}


def assignment_of(text, query):
    """Return the values of each variable of a text of version 2.0, as the scorer reads it.

    After a line `sat`, which may be missing, come a line `name type [sizes]` and a value a line, for inputs and then
    for outputs, as the property declares them. Empty lines do not count; nothing else may be there.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines[0] == "sat":
        lines = lines[1:]
    values = {}
    (network,) = query.networks
    for variable in (*network.inputs, *network.outputs):
        name, kind, sizes = HEADER.fullmatch(lines[0]).groups()
        shape = [int(size) for size in sizes.split(",")] if sizes.strip() else []
        assert name == variable.name and shape == list(variable.shape) and kind.lower() in TYPES[variable.dtype.name]
        count = math.prod(shape)
        values[name] = np.array([float(line) for line in lines[1 : 1 + count]], np.float32).reshape(shape)
        lines = lines[1 + count :]
    assert not lines
    return values


def points_of_version1(text):
    """Return inputs and outputs of a text of version 1.0: `sat`, then `((X_0 value) ... (Y_0 value) ...)`."""
    content = " ".join(text.removeprefix("sat").split())
    assert content[0] == "(" and content[-1] == ")"
    values = {"X": [], "Y": []}
    for part in filter(None, map(str.strip, content[1:-1].split(")"))):
        name, number = part.removeprefix("(").split(" ")
        assert int(name[2:]) == len(values[name[0]])
        values[name[0]].append(float(number))
    return values["X"], values["Y"]


@pytest.fixture
def folder(tmp_path):
    """The folder of a network of images [1, 2, 2] whose outputs are its first three numbers."""
    network = nn.Sequential(nn.Flatten(), with_weights(nn.Sequential(nn.Linear(4, 3)), torch.eye(3, 4))[0]).eval()
    export_onnx(network, tmp_path / "net.onnx", (1, 2, 2))
    return tmp_path


def version2(kinds, output_shape):
    a = [f"A[0,0,{i},{j}]" for i in range(2) for j in range(2)]
    y = [f"my_Out[{'0,' if len(output_shape) > 1 else ''}{n}]" for n in range(3)]
    return "\n".join(
        [
            "(vnnlib-version <2.0>)",
            f"(declare-network n (declare-input A {kinds[0]} [1,1,2,2])"
            f" (declare-output my_Out {kinds[1]} {str(output_shape).replace(' ', '')}))",
            *(f"(assert (and (>= {x} 0.1) (<= {x} 0.7)))" for x in a),
            f"(assert (or (<= {y[0]} {y[1]}) (>= {y[2]} 0.65)))",
        ]
    )


@pytest.mark.parametrize(
    ("kinds", "shape"), [(("float32", "float32"), [1, 3]), (("real", "real"), [3]), (("real", "float32"), [1, 3])]
)
def test_witnesses_of_version_2_are_read_by_the_scorer_s_rules(folder, capsys, kinds, shape):
    text = version2(kinds, shape)
    (folder / "p.vnnlib").write_text(text)
    arguments = [str(folder / name) for name in ("net.onnx", "p.vnnlib")]
    assert main("verify", [*arguments, "--output", str(folder / "answer.txt")]) == 0
    answer = (folder / "answer.txt").read_text()
    assert answer.startswith("sat\nA ")
    values = assignment_of(answer, vnnlib.parse_query_string(text))
    a, y = values["A"], values["my_Out"].ravel()
    (outputs,) = onnxruntime.InferenceSession(folder / "net.onnx").run(None, {"input": a})
    assert np.allclose(outputs.ravel(), y) and ((a >= np.float32(0.1)) & (a <= np.float32(0.7))).all()
    assert outputs[0, 0] <= outputs[0, 1] or outputs[0, 2] >= np.float32(0.65)
    capsys.readouterr()
    assert main("verify", [*arguments, "--results-dir", str(folder / "r")]) == 0
    assert main("recheck", [str(folder / "r")]) == 0
    assert "1 of 1 sat confirmed" in capsys.readouterr().out
    record = folder / "r" / "instances" / "00001.json"
    first_value = answer.splitlines()[2]
    before = record.read_text()
    changes = ((f"A {kinds[0]}", f"B {kinds[0]}"), ("[1,1,2,2]", "[4]"), (f"\\n{first_value}\\n", "\\n9.0\\n"))
    for old, new in changes:
        assert old in before
        record.write_text(before.replace(old, new))
        assert main("recheck", [str(folder / "r")]) == 1


def test_witnesses_of_version_1_are_read_by_the_scorer_s_rules(folder, capsys):
    lines = [f"(declare-const {kind}_{n} Real)" for kind, count in (("X", 4), ("Y", 3)) for n in range(count)]
    lines += [f"(assert (>= X_{n} 0.1))(assert (<= X_{n} 0.7))" for n in range(4)]
    (folder / "p.vnnlib").write_text("\n".join([*lines, "(assert (<= Y_0 Y_1))"]))
    assert main("verify", [str(folder / name) for name in ("net.onnx", "p.vnnlib")]) == 0
    printed = capsys.readouterr().out
    inputs, outputs = points_of_version1(printed[: printed.rindex("; ")].strip())
    assert len(inputs) == 4 and np.allclose(outputs, inputs[:3]) and outputs[0] <= outputs[1]
