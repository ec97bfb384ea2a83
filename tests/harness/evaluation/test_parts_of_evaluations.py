"""Parts of an evaluation end in seconds, and one that is killed between them goes on after the last."""

from itertools import pairwise

import pandas as pd
import pytest
import torch

from baselines import build
from harness.data import Split
from harness.evaluation import parts
from harness.evaluation.network import PreparedNetwork, prepare_network
from harness.evaluation.verdicts import EvaluationResult
from harness.settings import Evaluation

DIGEST = "digest"
SIZES = {1: [1] * 40, 15: [15, 15, 10], 40: [40]}
"""Images of a part -> sizes of the parts of 40 images."""


class Limits(list):
    """Of branch and bound, in seconds: of each part that was evaluated."""

    of_trial: float | None = None


@pytest.fixture
def limits():
    return Limits()


@pytest.fixture
def evaluate(monkeypatch, tiny_trial, tmp_path, limits):
    """A function of a part's images and of when to be killed: it evaluates 40 images and returns parts' sizes."""
    network = PreparedNetwork(torch.nn.Linear(1, 1), None, None, None)
    images = Split(torch.zeros(40, 1, 1, 1, dtype=torch.uint8), torch.zeros(40, dtype=torch.long))

    def evaluate_part(network, images, labels, first, config):
        limits.append(config.evaluation.bab_trial_seconds)
        table = parts.pd.DataFrame({"index": range(first, first + len(images))})
        return EvaluationResult(table, {}, 0.0, 1.0, {"ibp": 2.0 * len(images), "bab": 0.25 * len(images)}, {})

    def evaluate(per_part, stop_after=40):
        monkeypatch.setattr(parts, "evaluate_part", evaluate_part)
        monkeypatch.setattr(parts, "operations_per_image", lambda *_: {})
        monkeypatch.setattr(parts, "images_per_part", lambda *_: per_part)
        progress = []
        settings = Evaluation(bab_trial_seconds=limits.of_trial)
        config = tiny_trial(evaluation=settings)
        for done in parts.evaluate_in_parts(tmp_path, network, images, 0, config, DIGEST):
            progress.append(done)
            if done >= stop_after:
                break
        return [after - before for before, after in pairwise(progress)]

    return evaluate


@pytest.mark.parametrize("per_part", SIZES)
def test_killed_between_parts_it_goes_on_with_the_very_same_parts(evaluate, tmp_path, per_part):
    before = evaluate(per_part, stop_after=5)
    (tmp_path / "shards/00039.json").write_text("{}")  # of a part that was broken off
    assert before + evaluate(per_part) == SIZES[per_part]
    assert evaluate(per_part) == [], "all is saved"
    evaluation = parts.merge_parts(tmp_path, 40, DIGEST)
    assert evaluation.verdicts["index"].tolist() == list(range(40))
    assert evaluation.seconds["ibp"] == pytest.approx(80)


def test_without_a_limit_of_a_trial_parts_have_none(evaluate, limits):
    evaluate(10)
    assert limits == [None] * 4


@pytest.mark.parametrize("stop_after", [20, 40])
def test_parts_get_what_is_left_of_the_limit_of_a_trial(evaluate, limits, stop_after):
    """Ten images take 2.5 s of branch and bound."""
    limits.of_trial = 6.0
    evaluate(10, stop_after)
    evaluate(10)
    assert limits == [6.0, 3.5, 1.0, 0.0]


def test_an_evaluation_with_a_missing_part_is_not_merged(evaluate, tmp_path):
    evaluate(10)
    (tmp_path / "shards/00020.safetensors").write_bytes(b"nothing")
    with pytest.raises(parts.DamagedFileError, match="image 20"):
        parts.merge_parts(tmp_path, 40, DIGEST)


@pytest.mark.parametrize(("seconds", "images"), [(60.0, 10), (30.0, 20), (None, 40), (5.0, 40)])
def test_branch_and_bound_of_a_part_ends_within_ten_minutes(seconds, images):
    assert size_of_part([], seconds) == images


@pytest.mark.parametrize(("left", "images"), [(0, 100), (1, 50), (4, 20), (9, 10)])
def test_parts_grow_where_few_images_reach_branch_and_bound(left, images):
    """Of nine images so many are left to it, or to no stage."""
    verdicts = [("certified", "ibp")] * (9 - left) + [("unknown", "none"), ("certified", "bab")] * left
    assert size_of_part([pd.DataFrame(verdicts[:9], columns=["verdict", "stage"])], 60.0) == images


def size_of_part(tables, seconds):
    network = prepare_network(build("cnn5", dataset="digits", width=0.1).double().eval(), ("ibp", "bab"))
    pixels = Split(torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.zeros(40, dtype=torch.long))
    size = 40 if not tables else 400
    settings = Evaluation(stages=("ibp", "bab"), bab_seconds=seconds, bab_branches=9, batch_size=size)
    operations = parts.operations_per_image(network, pixels, settings)
    return parts.images_per_part(operations, tables, settings, torch.device("cpu"))
