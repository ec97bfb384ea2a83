"""`harness.export`: other programs read what it writes, and agree with our verdicts."""

import csv
import operator
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from harness.attacks.counterexamples import point_of
from harness.command_line import main
from harness.common import names
from harness.data import load
from harness.export import property_text
from harness.storage import folder
from harness.storage.parquet import read_verdicts

vnnlib = pytest.importorskip("vnnlib")

GOLDEN = Path(__file__).parent / "golden"
IMAGES = 60
COMPARISONS = {vnnlib.LessEqual: operator.le, vnnlib.GreaterEqual: operator.ge}
BY_HAND = """; two pixels
(vnnlib-version <2.0>)
(declare-network f (declare-input X float32 [1,1,1,2]) (declare-output Y float32 [1,3]))
(assert (and (>= X[0,0,0,0] 0.000000000000) (<= X[0,0,0,0] 0.007843137255)))
(assert (and (>= X[0,0,0,1] 0.192156862745) (<= X[0,0,0,1] 0.207843137255)))
(assert (or (>= Y[0,0] Y[0,1]) (>= Y[0,2] Y[0,1])))
"""


def holds(expression, values):
    """Whether an expression of the package's tree holds for the values, exactly."""
    if isinstance(expression, vnnlib.And | vnnlib.Or):
        results = [holds(each, values) for each in expression.args]
        return all(results) if isinstance(expression, vnnlib.And) else any(results)
    left, right = (
        Fraction(values[side.name][tuple(side.indices)].item())
        if isinstance(side, vnnlib.Var)
        else Fraction(side.lexeme)
        for side in (expression.lhs, expression.rhs)
    )
    return COMPARISONS[type(expression)](left, right)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported") / "new"
    assert main("export", [str(GOLDEN / "cnn5"), str(directory), "--images", str(IMAGES)]) == 0
    return directory


def test_onnxruntime_and_the_property_agree_with_every_verdict(exported):
    with (exported / "instances.csv").open() as file:
        rows = list(csv.reader(file))
    assert len(rows) == len(list(exported.glob("*.vnnlib"))) == IMAGES
    run = onnxruntime.InferenceSession(exported / "network.onnx")
    (evaluation_dir,) = folder.evaluation_folders(GOLDEN / "cnn5")
    eps = folder.read_evaluation(evaluation_dir).config.eps
    points = load_file(evaluation_dir / folder.COUNTEREXAMPLES)
    verdicts = read_verdicts(evaluation_dir).to_dict("records")
    random, images = np.random.default_rng(0), load("digits").test.images
    for row, (onnx, file, seconds) in zip(verdicts, rows, strict=True):
        query, verdict = vnnlib.parse_query_file(str(exported / file)), row[names.VERDICT]
        assert (onnx, seconds, verdict in (exported / file).read_text()) == ("network.onnx", "60", True)
        x = images[row[names.INDEX]].double() / 255
        ball = [(x - float(eps)).clamp(0, 1), (x + float(eps)).clamp(0, 1)]
        corners = [torch.from_numpy(np.where(random.random(x.shape) < 0.5, *ball)) for _ in range(20)]
        falsifying = [point_of(points[str(row[names.INDEX])], x, eps)] if verdict == names.FALSIFIED else []
        assert len(falsifying) == (verdict == names.FALSIFIED)
        for point in [x, *corners, *falsifying]:
            inputs = point.numpy()[None]
            (outputs,) = run.run(None, {"input": inputs.astype(np.float32)})
            *box, is_counterexample = [holds(each.expr, {"X": inputs, "Y": outputs}) for each in query.assertions]
            assert all(box), "our points lie in the exported box"
            assert not (is_counterexample and verdict == names.CERTIFIED)
            assert is_counterexample or not any(point is each for each in falsifying)
    assert {names.CERTIFIED, names.FALSIFIED} <= {row[names.VERDICT] for row in verdicts}


def test_the_box_contains_the_exact_ball_and_hardly_more():
    levels, eps = np.arange(256, dtype=np.uint8).reshape(1, 16, 16), Fraction(8, 255)
    query = vnnlib.parse_query_string(property_text(levels, 0, 2, eps, "all grey levels"))
    for level, assertion in enumerate(query.assertions[:-1]):
        low, high = (Fraction(each.rhs.lexeme) for each in assertion.expr.args)
        assert 0 <= max(Fraction(0), Fraction(level, 255) - eps) - low < Fraction(1, 10**12)
        assert 0 <= high - min(Fraction(1), Fraction(level, 255) + eps) < Fraction(1, 10**12)


def test_a_property_is_the_one_by_hand():
    assert property_text(np.array([[[0, 51]]], np.uint8), 1, 3, Fraction(2, 255), "two pixels") == BY_HAND


@pytest.mark.parametrize(
    ("network", "images", "message"),
    [
        ("cerdeq", 4, "no ONNX operator for fixed_point at node"),
        ("cnn5", 0, "--images: found 0, allowed: at least 1"),
        ("cnn5", 10**6, "1000000"),
        ("none", 4, "training.json is missing"),
    ],
)
def test_wrong_input_is_refused_and_nothing_written(network, images, message, tmp_path, capsys):
    output = tmp_path / "new"
    assert main("export", [str(GOLDEN / network), str(output), "--images", str(images)]) == 2
    assert message in capsys.readouterr().err and not output.exists()


def test_a_directory_with_files_is_left_as_it_is(tmp_path, capsys):
    (tmp_path / "mine").touch()
    assert main("export", [str(GOLDEN / "cnn5"), str(tmp_path), "--images", "4"]) == 2
    assert "a new or empty directory" in capsys.readouterr().err and len(list(tmp_path.iterdir())) == 1
