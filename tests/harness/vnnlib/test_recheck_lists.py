"""`python -m harness.recheck` on the answers to a list of instances: it confirms them, and names what was changed."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from onnx_writer import export_onnx
from small_properties import INPUTS, certified_result, declared, text_of, with_weights
from torch import nn

from harness.command_line import main
from harness.storage import instances
from harness.vnnlib.counterexample import decimal_between

SAT, UNSAT = (text_of(constraint, 0.1, 0.7) for constraint in ("(>= Y_0 0.6)", "(and (<= Y_0 0.05) (>= Y_0 -0.5))"))


def written(property_):
    """Return a property as a file of version 1.0. Its numbers are decimals."""
    cases = []
    for case in property_.cases:
        ends = [("<=", case.box.upper), (">=", case.box.lower)]
        atoms = [f"({sign} X_{n} {decimal(x)})" for sign, values in ends for n, x in enumerate(values)]
        for c in case.constraints:
            terms = " ".join(f"(* {decimal(factor)} Y_{n})" for n, factor in c.coefficients.items())
            atoms.append(f"(<= (+ {terms}) {decimal(c.bound)})")
        cases.append(f"(and {' '.join(atoms)})")
    return f"{declared()}(assert (or {' '.join(cases)}))"


def decimal(number):
    return decimal_between(number, number)


@pytest.fixture(scope="module")
def answered_list(tmp_path_factory):
    """The answers to three instances: sat, unsat by linear bounds, and unsat by splits. No test may change them."""
    pytest.importorskip("onnxruntime")

    directory = tmp_path_factory.mktemp("answers")
    network = with_weights(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), torch.eye(2), torch.eye(2))
    export_onnx(network, directory / "net.onnx", (2,))
    network, property_, *_ = certified_result(0)
    export_onnx(network, directory / "random.onnx", (INPUTS,))
    (directory / "sat.vnnlib").write_text(SAT)
    (directory / "easy.vnnlib").write_text(UNSAT)
    (directory / "hard.vnnlib").write_text(written(property_))
    (directory / "list.csv").write_text("net.onnx,sat.vnnlib,60\nnet.onnx,easy.vnnlib,60\nrandom.onnx,hard.vnnlib,60\n")
    arguments = directory / "list.csv", "--results-dir", directory / "results", "--workers", "1"
    assert main("verify", list(map(str, arguments))) == 0
    return directory


@pytest.fixture
def results(answered_list, tmp_path):
    """A copy of the results beside a copy of the files that they name."""
    shutil.copytree(answered_list, tmp_path, dirs_exist_ok=True)
    for path in (*tmp_path.glob("results/*.csv"), *tmp_path.glob("results/instances/*.json")):
        path.write_text(path.read_text().replace(str(answered_list), str(tmp_path)))
    return tmp_path / "results"


def recheck(directory, *options):
    return main("recheck", [str(directory), *options])


def test_answers_of_a_list_are_confirmed(results, capsys):
    assert recheck(results) == 0
    *_, summary = capsys.readouterr().out.splitlines()
    sat, unsat = "1 of 1 sat confirmed (1 by counterexample)", "2 of 2 unsat confirmed (1 by linear, 1 by certificate)"
    assert summary == f"{sat}; {unsat}"
    assert recheck(results, "--only", "*easy*") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 1 unsat confirmed (1 by linear)"
    assert recheck(results, "--images", "3") == 2


def write_table(results):
    records = [instances.read_record(path) for path in instances.find_records(results)]
    (results / instances.RESULTS).write_text(instances.results_text(records))


def change_record(results, change):
    number, fields = change
    path = results / "instances" / f"{number:05}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def point(x0, x1, y0, y1):
    return f"((X_0 {x0})\n(X_1 {x1})\n(Y_0 {y0})\n(Y_1 {y1}))"


RECORDS = {
    "no case is proved to hold": (1, {"counterexample": point(0.2, 0.2, 0.2, 0.2)}),
    "the counterexample lies in the box of no case": (1, {"counterexample": point(0.9, 0.2, 0.9, 1.1)}),
    "the stored outputs are not the network's": (1, {"counterexample": point(0.7, 0.2, 9, 0.7)}),
    "the counterexample is malformed": (1, {"counterexample": "((X_0 0.7))"}),
    "malformed, allowed: the decimals of 2": (1, {"counterexample": f"({'(X_0 9)'}\n; {point(0.7, 0.2, 0.7, 0.9)}"}),
    "sat not confirmed: the counterexample has numbers beyond": (1, {"counterexample": point(0.7, 0.2, "1e999", 0.7)}),
    "the counterexample has numbers beyond those of float32": (1, {"counterexample": point("-1e39", 0.2, 0.7, 0.7)}),
    "00001.json cannot be read: InputError: onnx: found None": (1, {"onnx": None}),
    "00002.json cannot be read: InputError: vnnlib: found 5": (2, {"vnnlib": 5}),
    "00003.json cannot be read: InputError: seconds: found None": (3, {"seconds": None}),
    f"{'a' * 300} is missing": (1, {"onnx": "a" * 300}),
    "this is no result": (1, {"result": "UNSAT"}),
    "sat not confirmed: the counterexample": (2, {"result": "sat"}),
    "unsat not confirmed: the violation of a case": (1, {"result": "unsat"}),
    "results.csv does not follow": (2, {"seconds": 99.0}),
}
CHANGES = {
    "net.onnx has changed": lambda r: (r.parent / "net.onnx").write_bytes((r.parent / "net.onnx").read_bytes() + b"\0"),
    "easy.vnnlib has changed": lambda r: (r.parent / "easy.vnnlib").write_text(SAT),
    "hard.vnnlib is missing": lambda r: (r.parent / "hard.vnnlib").unlink(),
    "00003.safetensors is missing": lambda r: (r / "instances" / "00003.safetensors").unlink(),
    "00002.json: unreadable not confirmed": lambda r: (r / "instances" / "00002.json").write_text("{"),
    **{message: partial(change_record, change=change) for message, change in RECORDS.items()},
}


@pytest.mark.parametrize("message", CHANGES)
def test_changed_files_are_named(results, capsys, message):
    CHANGES[message](results)
    assert recheck(results) == 1
    assert message in capsys.readouterr().out


def test_answers_beside_networks_are_refused(results, capsys):
    """Otherwise one harmless answer would hide a sweep from the recheck."""
    (results / "networks" / "0123456789ab").mkdir(parents=True)
    assert recheck(results) == 2
    assert "holds both networks/ and instances/" in capsys.readouterr().err
    assert main("verify", [str(results.parent / "list.csv"), "--results-dir", str(results)]) == 2
    assert "holds networks/" in capsys.readouterr().err


def test_answers_that_claim_nothing_are_no_success(results, capsys):
    for number in (1, 2, 3):
        change_record(results, (number, {"result": "timeout"}))
    text = (results / "results.csv").read_text()
    (results / "results.csv").write_text(text.replace(",sat,", ",timeout,").replace(",unsat,", ",timeout,"))
    assert recheck(results) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "no result claims sat or unsat: nothing was proved"


def test_one_property_with_a_results_directory_is_a_list_of_one(results, capsys):
    folder, directory = results.parent, results.parent / "one"
    files = str(folder / "random.onnx"), str(folder / "hard.vnnlib")
    assert main("verify", [*files, "--results-dir", str(directory)]) == 0
    assert recheck(directory) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 of 1 unsat confirmed")
    assert main("verify", [*files, "--results-dir", str(directory), "--output", "x"]) == 2
    assert main("verify", [files[0], "no.vnnlib", "--results-dir", str(directory)]) == 2


def test_layers_without_a_rule_are_not_confirmed(results, capsys):
    network = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 2)).eval()
    export_onnx(network, results.parent / "curved.onnx", (2,))
    (results.parent / "far.vnnlib").write_text(text_of("(>= Y_0 1000.0)", 0.1, 0.7))
    directory = results.parent / "curved"
    files = str(results.parent / "curved.onnx"), str(results.parent / "far.vnnlib")
    assert main("verify", [*files, "--results-dir", str(directory)]) == 0
    capsys.readouterr()
    assert recheck(directory) == 1
    printed = capsys.readouterr().out
    assert "harness.recheck has no rule for Sigmoid" in printed and "0 of 1 unsat confirmed" in printed


HIDDEN = [
    lambda text: f"((X_0 9.0)\n(X_1 9.0)\n(Y_0 9.0)\n(Y_1 9.0)) ; {text}",
    lambda text: f"; {text}",
    lambda text: text.replace("\n", " "),
    lambda text: text.replace("(X_1", "; a comment\n(X_1"),
    lambda text: f"{text}\n",
    lambda text: text.replace(")\n(X_1", ")\n(X_0 0.65)\n(X_1"),
    lambda text: text.replace("(X_0", "(X_00"),
    lambda text: text.replace("(X_1 0.", "(X_1 \u0660."),
    lambda text: [text],
    lambda text: None,
]


@pytest.mark.parametrize("number", range(len(HIDDEN)))
def test_a_counterexample_is_read_exactly(results, capsys, number):
    """Its values were once found anywhere in the text, also in comments."""
    record = json.loads((results / "instances" / "00001.json").read_text())
    change_record(results, (1, {"counterexample": HIDDEN[number](record["counterexample"])}))
    assert recheck(results, "--only", "*sat.vnnlib") == 1
    assert "the counterexample is malformed" in capsys.readouterr().out


def test_an_input_outside_its_box_by_little_is_no_counterexample(results, capsys):
    for value, status in (("0.7", 0), ("0.70000000000000000000000000000001", 1)):
        change_record(results, (1, {"counterexample": point(value, 0.2, 0.7, 0.2)}))
        assert recheck(results, "--only", "*sat.vnnlib") == status
    assert "lies in the box of no case" in capsys.readouterr().out


@pytest.fixture
def external(tmp_path):
    """A network whose weights lie in another file, as torch's exporter stores them; its outputs are its inputs."""
    onnx = pytest.importorskip("onnx")

    network, path = with_weights(nn.Sequential(nn.Linear(2, 2)), torch.eye(2)), tmp_path / "net.onnx"
    export_onnx(network, path, (2,))
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    (tmp_path / "p.vnnlib").write_text(text_of("(>= Y_0 1.0)", 0.1, 0.7))
    (tmp_path / "list.csv").write_text("net.onnx,p.vnnlib,60\n")
    return path


def test_weights_beside_a_network_are_part_of_it(external, capsys):
    """The digest once was of the file `.onnx` alone: with other weights beside it, a false `unsat` was confirmed."""
    directory, data = external.parent / "results", external.with_name("net.onnx.data")
    verify = ["verify", [str(external.parent / "list.csv"), "--results-dir", str(directory), "--workers", "1"]]
    assert main(*verify) == 0 and recheck(directory) == 0
    assert "1 of 1 unsat confirmed" in capsys.readouterr().out
    data.write_bytes((np.frombuffer(data.read_bytes(), np.float32) * 2).tobytes())
    assert recheck(directory) == 1
    assert "net.onnx has changed since it was verified" in capsys.readouterr().out
    assert main(*verify) == 0
    assert "1 sat" in capsys.readouterr().out and recheck(directory) == 0
