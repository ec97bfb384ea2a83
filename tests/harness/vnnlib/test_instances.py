"""`harness.verify` on files: one property, a list that continues after a stop, the competition's scripts."""

import csv
import functools
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from onnx_writer import export_onnx
from small_properties import text_of, with_weights
from torch import nn

from harness.command_line import main
from harness.common.errors import InputError
from harness.vnnlib import instances

pytest.importorskip("onnxruntime")
SCRIPTS = Path(__file__).parents[3] / "docs" / "vnncomp"
SAT, UNSAT = (text_of(constraint, 0.1, 0.7) for constraint in ("(>= Y_0 0.6)", "(and (>= Y_0 0.6) (<= Y_1 0.5))"))


@pytest.fixture
def files(tmp_path):
    """The folder of a network whose outputs are its two inputs, added and one by one, and of two properties."""
    layers = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    network = with_weights(layers, torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    export_onnx(network, tmp_path / "net.onnx", (2,))
    for name, text in (("sat", SAT), ("unsat", UNSAT)):
        (tmp_path / f"{name}.vnnlib").write_text(text)
    (tmp_path / "list.csv").write_text("net.onnx,sat.vnnlib,60\n./net.onnx,unsat.vnnlib,60\n")
    return tmp_path


def verify(*arguments):
    return main("verify", list(map(str, arguments)))


def test_one_property_is_decided_and_its_answer_written(files, capsys):
    for name in ("sat", "unsat"):
        assert verify(files / "net.onnx", files / f"{name}.vnnlib", "--output", files / "answer.txt") == 0
        answer = (files / "answer.txt").read_text()
        assert answer.splitlines()[0] == name
        assert capsys.readouterr().out.startswith(f"{name}\n; ")
        assert verify(files / "net.onnx", files / f"{name}.vnnlib") == 0
        assert capsys.readouterr().out.startswith(answer)
        if name == "sat":
            values = dict(line.strip("()").split() for line in answer.splitlines()[1:])
            assert list(values) == ["X_0", "X_1", "Y_0", "Y_1"]
            assert float(values["Y_0"]) == float(values["X_0"]) >= 0.6


def rows_of(directory):
    with open(directory / "results.csv") as file:
        return list(csv.DictReader(file))


def test_a_list_continues_where_it_stopped(files, monkeypatch, capsys):
    directory, solved = files / "results", []
    run = functools.partial(verify, files / "list.csv", "--results-dir", directory, "--workers", "1")
    original = instances._solve_instance

    def counted(item, report):
        solved.append(item.directory.name)
        return original(item, report)

    monkeypatch.setattr(instances, "_solve_instance", counted)
    assert run() == 0
    assert [row["result"] for row in rows_of(directory)] == ["sat", "unsat"]
    assert "1 sat, 1 unsat" in capsys.readouterr().out
    assert json.loads((directory / "instances" / "00001.json").read_text())["counterexample"].startswith("((X_0 ")
    assert run() == 0 and len(solved) == 2, "nothing is left to do"
    (directory / "instances" / "00002.json").write_text("{ half a file")
    assert run() == 0 and solved[2:] == ["00002.json"]
    (files / "sat.vnnlib").write_text(UNSAT)
    assert run() == 0 and solved[3:] == ["00001.json"], "another property is another question"
    assert [row["result"] for row in rows_of(directory)] == ["unsat", "unsat"]
    assert run("--timeout", "30") == 0 and len(solved) == 6
    assert {row["timeout"] for row in rows_of(directory)} == {"30.0"}


def test_answers_to_other_instances_are_not_replaced(files, capsys):
    directory, lines = files / "results", (files / "list.csv").read_text().splitlines(keepends=True)
    run = functools.partial(verify, files / "list.csv", "--results-dir", directory, "--workers", "1")
    assert run() == 0
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    (files / "list.csv").write_text(lines[0])
    assert run() == 2, "the second row's answer belongs to no row"
    assert "instances/00002.json" in capsys.readouterr().err
    assert verify(files / "net.onnx", files / "unsat.vnnlib", "--results-dir", directory) == 2
    (files / "list.csv").write_text(lines[1])
    assert run() == 2
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
    assert main("recheck", [str(directory)]) == 0
    (directory / "instances" / "00002.json").unlink()
    (files / "list.csv").write_text(lines[0])
    assert run() == 0 and [row["result"] for row in rows_of(directory)] == ["sat"]
    assert main("recheck", [str(directory)]) == 0


def test_rows_that_cannot_be_solved_are_errors_in_a_line_and_the_others_are_answered(files, capsys):
    """The list form of VNN-COMP 2026 names networks; of one network it is answered."""
    (files / "broken.vnnlib").write_text("(assert (<= Y_0 1)")
    one, two = """"[('f', 'net.onnx')]",sat.vnnlib,60""", """"[('f', 'net.onnx'), ('g', 'net.onnx')]",sat.vnnlib,60"""
    rows = [two, "net.onnx,broken.vnnlib,60", one, "net.onnx,missing.vnnlib,60", "net.onnx,unsat.vnnlib,soon",
            "net.onnx,unsat.vnnlib", '"[(\'f\', 3)]",sat.vnnlib,60', "net.onnx,unsat.vnnlib,60"]  # fmt: skip
    (files / "list.csv").write_text("\n".join(rows))
    arguments = files / "list.csv", "--results-dir", files / "results", "--workers", "1"
    assert verify(*arguments) == 1
    printed = capsys.readouterr().out
    results = rows_of(files / "results")
    assert [row["result"] for row in results] == ["error"] * 2 + ["sat"] + ["error"] * 4 + ["unsat"]
    for row, message in zip(
        results,
        ["line 1: found '2 networks', allowed: one", "broken.vnnlib: line 1: found an opening bracket", "",
         "line 4: found 'missing.vnnlib', allowed: a file", "line 5, timeout: found 'soon', allowed: seconds above 0",
         "line 6: found ['net.onnx', 'unsat.vnnlib'], allowed: onnx,vnnlib,timeout",
         "line 7: found \"[('f', 3)]\"", ""],
        strict=True,
    ):  # fmt: skip
        assert message in row["detail"]
        assert not message or any("error" in line and message in line for line in printed.splitlines())
    assert main("recheck", [str(files / "results")]) == 0
    (files / "missing.vnnlib").write_text(SAT)
    assert verify(*arguments) == 1
    assert [row["result"] for row in rows_of(files / "results")][2:4] == ["sat", "sat"]
    (files / "list.csv").write_text(two)
    assert verify(files / "list.csv", "--results-dir", files / "other") == 2
    assert "2 networks" in capsys.readouterr().err and not (files / "other").exists()


def test_packed_files_are_found_under_their_names(files):
    for name in ("net.onnx", "sat.vnnlib"):
        (files / f"{name}.gz").write_bytes(gzip.compress((files / name).read_bytes()))
        (files / name).unlink()
    assert verify(files / "list.csv", "--results-dir", files / "results", "--workers", "1") == 0
    assert [row["result"] for row in rows_of(files / "results")] == ["sat", "unsat"]
    assert [Path(row["onnx"]).name for row in rows_of(files / "results")] == ["net.onnx.gz"] * 2
    assert main("recheck", [str(files / "results")]) == 0


def test_a_list_is_a_regular_file_and_may_begin_with_a_byte_order_mark(files):
    path = files / "list.csv"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert [Path(each.onnx).name for each in instances.read_instances(path)] == ["net.onnx"] * 2
    os.mkfifo(files / "pipe.csv")
    for other in (files / "pipe.csv", files):
        with pytest.raises(InputError, match="cannot be read: FileNotFoundError"):
            instances.read_instances(other)


@pytest.mark.slow
def test_instances_are_solved_side_by_side(files):
    assert verify(files / "list.csv", "--results-dir", files / "results", "--workers", "2") == 0
    assert [row["result"] for row in rows_of(files / "results")] == ["sat", "unsat"]


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ("", ["list.csv", "--timeout", "0"], "--timeout: found 0.0, allowed: a number above 0"),
        ("", ["list.csv", "--timeout", "nan"], "--timeout: found nan"),
        ("", ["list.csv", "--workers", "0"], "--workers: found 0"),
        ("", ["list.csv", "--output", "x"], "--output: found"),
        ("", ["net.onnx", "sat.vnnlib", "--workers", "2"], "--workers: found 2, allowed: nothing for a single"),
        ("", ["net.onnx", "sat.vnnlib", "list.csv"], "FILE: found"),
        ("", ["missing.csv"], "missing.csv cannot be read"),
        ("", ["net.onnx"], "found ['net.onnx'], allowed: NETWORK.onnx PROPERTY.vnnlib, or INSTANCES.csv"),
        ("", ["net.onnx", "missing.vnnlib"], "missing.vnnlib cannot be read: No such file or directory"),
        ("", ["missing.onnx", "sat.vnnlib"], "missing.onnx: cannot be read"),
        ("", ["sat.vnnlib", "sat.vnnlib"], "sat.vnnlib: not"),
        ("list.csv:\n", ["list.csv"], "list.csv holds no instances"),
        ("list.csv:net.onnx,sat.vnnlib\n", ["list.csv"], "list.csv, line 1: found ['net.onnx', 'sat.vnnlib']"),
        ("list.csv:net.onnx,sat.vnnlib,soon\n", ["list.csv"], "list.csv, line 1, timeout: found 'soon'"),
        ("list.csv:net.onnx,no.vnnlib,9\n", ["list.csv"], "list.csv, line 1: found 'no.vnnlib', allowed: a file"),
        (f"list.csv:net.onnx,{'a' * 300},9\n", ["list.csv"], "list.csv, line 1: found 'aaa"),
        ("", [f"{'a' * 300}.onnx", "sat.vnnlib", "--results-dir", "r"], "allowed: a file that exists"),
        ("list.csv:net.onnx,\0,9\n", ["list.csv"], "list.csv"),
        ("sat.vnnlib:(declare-const Y_2 Real)", ["net.onnx", "sat.vnnlib"], "2 inputs and 3 outputs, allowed: 2 and 2"),
        ("", ["net.onnx.gz"], "found ['net.onnx.gz'], allowed: NETWORK.onnx PROPERTY.vnnlib"),
        ("sat.vnnlib:(assert (>= X_0 0.8))", ["net.onnx", "sat.vnnlib"], "box of inputs is empty: X_0 is at least 0.8"),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused(files, monkeypatch, capsys, change, arguments, message):
    name, _, text = change.partition(":")
    if name:
        before = (files / name).read_text() if name.endswith("vnnlib") else ""
        (files / name).write_text(before + text)
    monkeypatch.chdir(files)
    assert verify(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and message in printed.err
    assert printed.out == "" and not (files / "results").exists()


@pytest.mark.parametrize(("end", "message"), [("70", "other outputs than onnxruntime"), ("1e30", "infinite or no num")])
def test_outputs_are_compared_in_the_box_of_the_property(files, monkeypatch, capsys, end, message):
    """Random points alone lie near 0."""
    from cerdeq.onnx.operators import LAYERS

    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    network[0].weight.data, network[2].weight.data = (torch.full((2, 2), 1e5 if end == "1e30" else 1.0),) * 2
    export_onnx(network, files / "net.onnx", (2,))
    if end == "70":
        monkeypatch.setitem(LAYERS, "Relu", lambda node: nn.Hardtanh(0.0, 50.0))
    (files / "sat.vnnlib").write_text(SAT.replace("0.7", end))
    assert verify(files / "net.onnx", files / "sat.vnnlib") == 2
    assert message in capsys.readouterr().err


def test_the_scripts_of_the_competition(files):
    """In place of Python: what prepares prints the program that it would run, what fails leaves no answer."""

    def call(script, *arguments, python="false"):
        command = ["bash", str(SCRIPTS / script), *map(str, arguments)]
        environment = os.environ | {"VNNCOMP_PYTHON": python}
        done = subprocess.run(command, env=environment, cwd=files, stdout=subprocess.PIPE, text=True, check=False)
        return done.returncode, done.stdout

    answer, arguments = files / "answer.txt", ("v1", "tiny", files / "net.onnx")
    status, program = call("prepare_instance.sh", *arguments, files / "sat.vnnlib", python="echo")
    assert status == 0
    exec(program.removeprefix("-c "))
    assert call("prepare_instance.sh", *arguments, files / "no.vnnlib", python="echo") == (1, "")
    for python, expected in (("false", "error"), (sys.executable, "sat")):
        assert call("run_instance.sh", *arguments, files / "sat.vnnlib", answer, 60, python=python)[0] == 0
        assert answer.read_text().splitlines()[0] == expected
    for script in ("install_tool.sh", "prepare_instance.sh", "run_instance.sh"):
        assert call(script, "v2")[0] == 1
