"""Evaluation waits seldom for the device (`pytest -s` prints how often), and goes on where memory runs out."""

import copy
import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from controls import counted, failing
from pandas.testing import assert_frame_equal
from steppers import stepper_of, take_steps
from torch import nn
from values import Values

from cerdeq import Box, verify
from cerdeq.bounds import alpha_crown, methods
from cerdeq.branch import attack, hidden_boxes, leaf_search, schedule
from cerdeq.branch.ascent import Steps
from cerdeq.branch.search import TIMEOUT, Decision
from cerdeq.equilibrium import fold
from harness.common import names
from harness.data import load
from harness.evaluation import stages, verdicts
from harness.evaluation.metrics import final_metrics
from harness.evaluation.network import prepare_network

pytestmark = pytest.mark.filterwarnings("default")

STAGES = ("ibp", "crown-ibp", "alpha-crown", "bab")
IMAGES, ASCENT = 4, 2  # ASCENT: steps of searches for slopes, which take 30 to 40
EPS = {"cnn5": "1/16", "cerdeq": "1/32"}  # for which each stage has images to decide
MOST_WAITS = {  # synchronisations for a batch
    "cnn5": {"clean and ibp": 8, "attack": 24, "crown-ibp": 10, "alpha-crown": 40, "bab": 60},
    "cerdeq": {"clean and ibp": 45, "attack": 80, "crown-ibp": 70, "alpha-crown": 280, "bab": 360},
}


@pytest.fixture(scope="module")
def trained(tiny_training, tiny_evaluation):
    """A function of a network's name to its evaluation, itself, images, and its own predictions of them as labels."""

    @functools.cache
    def make(name):
        weak = {"attack": "margin", "attack_steps": 8, "bab_seconds": None, "bab_branches": 4}
        evaluation = tiny_evaluation(eps=EPS[name], stages=STAGES, **weak)
        stepper = stepper_of(tiny_training(name, width=0.1, train={"eps": EPS[name]}))
        for _ in range(12):
            take_steps(stepper, 5, 64)
        fold(stepper.model)
        model, images = stepper.model.eval().double(), load("digits").test.images[:IMAGES]
        with torch.no_grad():
            labels = model(images.double() / 255).argmax(1)
        return evaluation, model, images, labels

    return make


def counts_by_stage(monkeypatch):
    """Return a dictionary that gets the counts of each stage of the evaluation that follows."""
    counts = {}

    def counting(stage, function):
        def call(*arguments):
            with counted() as added:
                result = function(*arguments)
            counts[stage] = added
            return result

        return call

    monkeypatch.setattr(verdicts, "bound_batch", counting("clean and ibp", verdicts.bound_batch))
    monkeypatch.setattr(verdicts, "attack_batch", counting("attack", verdicts.attack_batch))
    for name, function in list(stages.FUNCTIONS.items()):
        monkeypatch.setitem(stages.FUNCTIONS, name, counting(name, function))
    return counts


@pytest.mark.parametrize("name", ["cnn5", pytest.param("cerdeq", marks=pytest.mark.slow)])
def test_the_host_waits_seldom_and_the_verdicts_are_those_of_a_cpu(trained, monkeypatch, name):
    settings, model, images, labels = trained(name)
    monkeypatch.setattr(alpha_crown, "ITERATIONS", ASCENT)
    monkeypatch.setattr(leaf_search, "_ROOT_STEPS", replace(leaf_search._ROOT_STEPS, count=ASCENT))
    network = prepare_network(copy.deepcopy(model).cpu(), STAGES, 10)
    expected = verdicts.evaluate_images(network, images, labels, 0, settings)
    counts = counts_by_stage(monkeypatch)
    with Values():
        network = prepare_network(model.cuda(), STAGES, 10)
        evaluation = verdicts.evaluate_images(network, images.cuda(), labels.cuda(), 0, settings)
    print(f"\n{name:14} launches    waits")
    for stage, added in counts.items():
        print(f"{stage:14} {added['launches']:8} {added['synchronisations']:8}")
    assert_frame_equal(evaluation.verdicts, expected.verdicts, rtol=1e-4, atol=1e-4)
    waits = {stage: added["synchronisations"] for stage, added in counts.items()}
    assert all(waits[stage] <= most for stage, most in MOST_WAITS[name].items()), waits


def test_boxes_of_hidden_units_are_tightened_on_the_device(monkeypatch):
    torch.manual_seed(1)
    layers = [part for sizes in itertools.pairwise((12, 10, 10, 10)) for part in (nn.Linear(*sizes), nn.ReLU())]
    model, tightened = nn.Sequential(*layers, nn.Linear(10, 1)).double().eval(), []
    points = 2 * torch.rand(20000, 12, dtype=torch.float64) - 1
    points[:10000] = points[:10000].sign()
    with torch.no_grad():
        for layer in layers[::2]:
            layer.weight *= 2
        model[-1].bias += model(points).std() - model(points).min()
    original = hidden_boxes.HiddenBounds._grow

    def grow(*arguments):
        tightened.append(original(*arguments))
        return tightened[-1]

    monkeypatch.setattr(hidden_boxes.HiddenBounds, "_grow", grow)
    monkeypatch.setattr(schedule, "_FIRST_TURN", 1e-3)  # hidden layers at once
    monkeypatch.setattr(schedule, "_FEWEST_LEAVES", 1)
    monkeypatch.setattr(schedule._ProgramTurns, "run", lambda turns, problem, *_: Decision(TIMEOUT, problem.lower))
    monkeypatch.setattr(attack, "_DESCENDING", 1)
    monkeypatch.setattr(hidden_boxes, "ROOT_STEPS", Steps(1))
    monkeypatch.setattr(leaf_search, "_ROOT_STEPS", Steps(1))
    with Values():
        center, spec = torch.zeros(1, 12, dtype=torch.float64).cuda(), torch.ones(1, 1, 1, dtype=torch.float64).cuda()
        verify(model.cuda(), Box(center, torch.ones_like(center)), spec, seconds=None, branches=20)
    assert tightened and {rows.leaves.row.device.type for rows in tightened} == {"cuda"}


FAULTS = {  # what runs out of memory while a fault is on; libraries and contexts are asked for in new threads
    "memory": lambda: torch.empty(2**30, device="cuda"),
    "library-memory": lambda: torch.ones(2, 2, device="cuda").mm(torch.ones(2, 2, device="cuda")),
}


def run_out_of_memory(fault):
    with failing(fault), ThreadPoolExecutor(1) as thread:
        thread.submit(FAULTS[fault]).result()


def evaluate(trained, first=0, last=IMAGES):
    """Return the evaluation of images of cnn5, a part, up to CROWN-IBP, which certifies some images of each half."""
    settings, model, images, labels = trained("cnn5")
    settings = settings.replace(eps="1/100", stages=("ibp", "crown-ibp"), attack_steps=1)
    with Values():
        network = prepare_network(model.cuda(), settings.stages, 10)
        part = images[first:last].cuda(), labels[first:last].cuda()
        return verdicts.evaluate_images(network, *part, first, settings)


@pytest.fixture(scope="module")
def expected(trained):
    """The verdicts where memory does not run out."""
    result = evaluate(trained).verdicts
    assert names.CERTIFIED in set(result[names.VERDICT][IMAGES // 2 :])
    return result


@pytest.mark.parametrize("fault", FAULTS)
def test_bounds_that_do_not_fit_are_computed_by_halves(trained, expected, monkeypatch, fault):
    original, sizes = methods.values_of, []

    def values_of(program, x, ctx):
        sizes.append(len(x.center))
        if len(x.center) > 1:
            run_out_of_memory(fault)
        return original(program, x, ctx)

    monkeypatch.setattr(methods, "values_of", values_of)
    result = evaluate(trained).verdicts
    assert sizes[:3] == [IMAGES, IMAGES // 2, IMAGES // 4]
    for column in (names.VERDICT, names.STAGE, names.REASON):
        assert list(result[column]) == list(expected[column]), column


def test_an_image_that_does_not_fit_is_not_certified_and_the_next_part_is(trained, expected, monkeypatch):
    original, sizes = stages.lower_bounds, []

    def lower_bounds(program, region, *arguments, **named):
        sizes.append(len(region.center))
        if len(sizes) <= 3:  # the first part, and each of its images alone
            run_out_of_memory("memory")
        return original(program, region, *arguments, **named)

    monkeypatch.setattr(stages, "lower_bounds", lower_bounds)
    evaluation, following = evaluate(trained, 0, 2), evaluate(trained, 2).verdicts
    assert sizes == [2, 1, 1, 2]
    assert set(evaluation.verdicts[names.VERDICT]) == {names.OUT_OF_MEMORY}
    assert set(evaluation.verdicts[names.STAGE]) == {"crown-ibp"}
    assert final_metrics(evaluation, ("ibp", "crown-ibp"))[names.CERTIFIED_ERROR] == 100
    assert_frame_equal(following, expected[2:].reset_index(drop=True), rtol=1e-4, atol=1e-4)
