"""Which images a trial, its certification and the checker look at, with and without held-out images."""

from pathlib import Path

import pytest
from harness.training.trial import split_images
from harness.tune.certify_plan import Certification, EvaluationChanges, change_evaluation

from harness.checker.verdicts import evaluated_images
from harness.data import load
from harness.storage.folder import make_trial

TRIAL, CERTIFICATION = Path("trials/key"), Path("trials/key/certified/name")


@pytest.mark.parametrize("images", [None, 10])
@pytest.mark.parametrize("test_images", [None, 30])
@pytest.mark.parametrize("held_out", [0, 40])
def test_trial_certification_and_checker_agree_on_the_images(tiny_trial, held_out, test_images, images):
    data, config = load("digits"), tiny_trial()
    evaluation = config.evaluation.replace(test_images=test_images)
    config = config.replace(validation_images=held_out, evaluation=evaluation)
    certification = change_evaluation(config, EvaluationChanges(("ibp",), images))
    certified = Certification(TRIAL, make_trial(certification, data.fingerprint), data)
    of_trial = data.train.labels[-40:] if held_out else data.test.labels[:test_images]
    of_certification = of_trial if images is None else of_trial[:images]
    assert split_images(config, data)[1].labels.equal(of_trial)
    assert certified.images.labels.equal(of_certification)
    for verdict_dir, its, expected in ((TRIAL, config, of_trial), (CERTIFICATION, certification, of_certification)):
        assert evaluated_images(verdict_dir, its, data).labels.equal(expected)
