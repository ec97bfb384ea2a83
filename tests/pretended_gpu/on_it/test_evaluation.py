"""Evaluation waits seldom for the device. Print the counts with `pytest -s`."""

from dataclasses import replace

import pytest
import torch
from controls import counted
from steppers import stepper_of, take_steps
from values import Values

from cerdeq.equilibrium import fold
from harness.data import load
from harness.evaluation import verdicts

pytestmark = pytest.mark.filterwarnings("default")

STAGES = ("ibp", "crown-ibp", "alpha-crown", "bab")
IMAGES = 8
EPS = {"cnn5": "1/16", "cerdeq": "1/32"}  # for which each stage has images to decide
MOST_WAITS = {  # synchronisations for a batch
    "cnn5": {"clean and ibp": 0, "attack": 0, "crown-ibp": 0, "alpha-crown": 0, "bab": 0},
    "cerdeq": {"clean and ibp": 0, "attack": 0, "crown-ibp": 0, "alpha-crown": 0, "bab": 0},
}


@pytest.fixture(scope="module")
def trained(tiny_trial):
    """A function of a network's name to its trial, itself, images, and its own predictions of them as labels."""

    def make(name):
        config = tiny_trial(name, eps=EPS[name])
        settings = replace(
            config.evaluation, stages=STAGES, attack="margin", attack_steps=8, bab_seconds=None, bab_branches=4
        )
        stepper = stepper_of(config)
        for _ in range(12):
            take_steps(stepper, 5, 64)
        fold(stepper.model)
        model, images = stepper.model.eval().double(), load(config.dataset).test.images[:IMAGES]
        with torch.no_grad():
            labels = model(images.double() / 255).argmax(1)
        return replace(config, evaluation=settings), model, images, labels

    return make


def counts_by_stage(monkeypatch):
    """Return a dictionary that gets the counts of each stage of the evaluation that follows."""
    counts = {}

    def counting(name, stage_of):
        function = getattr(verdicts, name)

        def call(*arguments):
            with counted() as added:
                result = function(*arguments)
            counts[stage_of(arguments)] = added
            return result

        monkeypatch.setattr(verdicts, name, call)

    counting("_clean_and_ibp", lambda arguments: "clean and ibp")
    counting("_attack", lambda arguments: "attack")
    counting("_least_margins", lambda arguments: arguments[1])
    counting("branch_and_bound", lambda arguments: "bab")
    return counts


@pytest.mark.parametrize("name", EPS)
def test_the_host_waits_seldom(trained, monkeypatch, name):
    config, model, images, labels = trained(name)
    counts = counts_by_stage(monkeypatch)
    with Values():
        network = verdicts.ready(model.cuda(), STAGES)
        evaluation = verdicts.judge_part(network, images.cuda(), labels.cuda(), 0, config)
    print(f"\n{name:14} launches    waits")
    for stage, added in counts.items():
        print(f"{stage:14} {added['launches']:8} {added['synchronisations']:8}")
    print(evaluation.verdicts.drop(columns=["width", "index", "label"]).to_string())
    waits = {stage: added["synchronisations"] for stage, added in counts.items()}
    assert all(waits[stage] <= most for stage, most in MOST_WAITS[name].items()), waits
