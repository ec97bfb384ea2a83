"""Parts of an evaluation end in seconds, and one that is killed between them goes on after the last."""

import dataclasses
from itertools import pairwise

import pytest
import torch

from harness.config.settings import EvaluationSettings
from harness.data import Split
from harness.evaluation import shards
from harness.evaluation.network import PreparedNetwork
from harness.evaluation.verdicts import Evaluation
from harness.storage import certification

DIGEST = "digest"
SIZES = {
    27.0: [1] * 40,
    3.0: [1] * 40,
    2.0: [1, *[4] * 9, 3],
    0.01: [1, 4, 15, 15, 5],
}
"""Seconds of an image -> sizes of the parts of 40 images, at most 15 at a time."""


@pytest.fixture
def evaluate(monkeypatch, tiny_trial, tmp_path):
    """A function of an image's seconds and of when to be killed: it evaluates 40 images and returns parts' sizes."""
    network = PreparedNetwork(torch.nn.Linear(1, 1), None, None, None)
    images = Split(torch.zeros(40, 1, 1, 1, dtype=torch.uint8), torch.zeros(40, dtype=torch.long))
    config = dataclasses.replace(tiny_trial(), evaluation=EvaluationSettings(batch_size=15))

    def evaluate(seconds, stop_after=40):
        def evaluate_part(network, images, labels, first, config):
            table = shards.pd.DataFrame({"index": range(first, first + len(images))})
            return Evaluation(table, {}, 0.0, 1.0, {"ibp": seconds * len(images)}, {})

        monkeypatch.setattr(shards, "evaluate_part", evaluate_part)
        progress = []
        for done in shards.evaluate_in_parts(tmp_path, network, images, 0, config, DIGEST):
            progress.append(done)
            if done >= stop_after:
                break
        return [after - before for before, after in pairwise(progress)]

    return evaluate


@pytest.mark.parametrize("seconds", SIZES)
def test_parts_end_in_seconds_unless_one_image_takes_longer(evaluate, seconds):
    assert evaluate(seconds) == SIZES[seconds]
    assert max(SIZES[seconds]) == 1 or max(SIZES[seconds]) * seconds < shards.PART_SECONDS


def test_images_that_become_slow_are_fewer_at_a_time(evaluate):
    assert evaluate(0.01, stop_after=20) == [1, 4, 15]
    assert evaluate(1.0, stop_after=35) == [15]
    assert evaluate(1.0) == [5]
    assert shards._next_size(certification.Part(200, "", "", {"ibp": 11.0}, {}, None, None)) == 100


@pytest.mark.parametrize("seconds", SIZES)
def test_killed_between_parts_it_goes_on_with_the_very_same_parts(evaluate, tmp_path, seconds):
    before = evaluate(seconds, stop_after=5)
    (tmp_path / "shards/00039.json").write_text("{}")  # of a part that was broken off
    assert before + evaluate(seconds) == SIZES[seconds]
    assert evaluate(seconds) == [], "all is saved"
    evaluation = shards.merge_parts(tmp_path, 40, DIGEST)
    assert evaluation.verdicts["index"].tolist() == list(range(40))
    assert evaluation.seconds["ibp"] == pytest.approx(40 * seconds)


def test_an_evaluation_with_a_missing_part_is_not_merged(evaluate, tmp_path):
    evaluate(0.01)
    (tmp_path / "shards/00020.safetensors").write_bytes(b"nothing")
    with pytest.raises(shards.DamagedFileError, match="image 20"):
        shards.merge_parts(tmp_path, 40, DIGEST)
