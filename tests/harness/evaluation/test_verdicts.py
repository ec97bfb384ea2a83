"""Verdicts come from the first stage that decides an example, and agree with other ways to compute them."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from networks import evaluate, trained
from torch import nn

from baselines import build
from cerdeq import Box
from cerdeq.bounds import crown, trace
from cerdeq.bounds.float32 import in_float32
from cerdeq.equilibrium import rules
from cerdeq.errors import UnsupportedOperator
from harness.attacks.counterexamples import LEVELS, decode, unpack
from harness.attacks.objectives import margins
from harness.checker.bounds.network import read_network
from harness.checker.proofs.example import why_not_falsified
from harness.common import names
from harness.evaluation import attack, ibp, network, stages
from harness.evaluation.ibp import count_without_attack
from harness.evaluation.ledger import SoundnessError

MARGIN = names.margin_column("ibp")
SMALL = "1/100000"  # a radius at which IBP certifies much


@pytest.fixture
def problem(tiny_evaluation):
    """Return a function of a network's name to the arguments of `evaluate`; every ninth label is wrong."""

    def make(name: str, count=45, **changes):
        model = build(name, "digits", 0.1).double().eval()
        images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8)
        with torch.no_grad():
            labels = model(images.double() / 255).argmax(1)
        labels[::9] = (labels[::9] + 1) % 10
        return model, images, labels, tiny_evaluation(**changes)

    return make


@pytest.mark.parametrize("name", ["cnn5", "cerdeq"])
def test_verdicts_have_a_row_for_each_example_and_agree_with_the_network(problem, name):
    model, images, labels, settings = problem(name, eps=SMALL)
    table = evaluate(model, images, labels, settings).verdicts
    assert table[names.INDEX].tolist() == list(range(len(images)))
    with torch.no_grad():
        assert table[names.PREDICTION].tolist() == model(images.double() / 255).argmax(1).tolist()
    assert set(table.loc[::9, names.VERDICT]) == {names.MISCLASSIFIED}
    certified = table[table[names.VERDICT] == names.CERTIFIED]
    proved = certified[[MARGIN, "margin_crown-ibp"]].max(axis=1)
    assert (proved > 0).all() and (certified[MARGIN] > 0).any()
    assert (certified[names.ATTACK_MARGIN] >= proved).all()
    assert set(table[names.STAGE]) <= {"clean", "attack", "ibp", "crown-ibp", "none"}
    counts = (table[names.VERDICT] != names.MISCLASSIFIED).sum(), (table[MARGIN] > 0).sum()
    assert count_without_attack(model, images.double() / 255, labels, settings.eps, 10) == counts


@pytest.mark.parametrize("name", ["cnn5", pytest.param("cerdeq", marks=pytest.mark.slow)])
def test_each_stage_bounds_only_undecided_examples_and_loses_no_proof(problem, name):
    model, images, labels, settings = problem(name, count=27, eps="1/2000")
    choices = [("ibp",), ("ibp", "crown-ibp"), ("ibp", "crown-ibp", "crown", "alpha-crown")]
    tables = [evaluate(model, images, labels, settings.replace(stages=stages)).verdicts for stages in choices]
    proved = [set(table.index[table[names.VERDICT] == names.CERTIFIED]) for table in tables]
    assert proved[0] <= proved[1] <= proved[2] and len(proved[0]) < len(proved[2])
    for table in tables:
        assert table[MARGIN].notna().all()
        decided = ~table[names.VERDICT].isin([names.CERTIFIED, names.UNKNOWN])
        for earlier, later in pairwise(column for column in table if column.startswith("margin_")):
            decided |= table[earlier] > 0
            assert (table[later].isna() == decided).all()
            both = table[later].notna()
            assert (table.loc[both, later] >= table.loc[both, earlier]).all()
            assert (table.loc[both, names.ATTACK_MARGIN] >= table.loc[both, later]).all()


def test_verdicts_do_not_depend_on_slices(problem, monkeypatch):
    model, images, labels, settings = problem("cnn5", eps="1/2000")
    first = evaluate(model, images, labels, settings)
    monkeypatch.setattr(ibp, "examples_in_cache", lambda *_: 7)
    second = evaluate(model, images, labels, settings)
    exact, close = [names.VERDICT, names.STAGE, names.INDEX], [names.ATTACK_MARGIN, MARGIN, "margin_crown-ibp"]
    assert first.verdicts[exact].equals(second.verdicts[exact])
    for column in close:
        numbers = first.verdicts[column].tolist()
        assert numbers == pytest.approx(second.verdicts[column].tolist(), abs=1e-7, nan_ok=True)
    assert first.layers == pytest.approx(second.layers) and first.clean_mean == pytest.approx(second.clean_mean)
    logits = model(images.double() / 255).detach()
    clean = (logits.gather(1, labels[:, None]) - logits).sum(1) / 9
    assert first.clean_mean == pytest.approx(float(clean.mean()), rel=1e-6)


@pytest.mark.parametrize("name", ["cnn5", "cerdeq"])
def test_float32_first_gives_the_verdicts_of_float64_alone(name, monkeypatch):
    """Of trained networks, on images whose margins are near 0; as on a GPU whose float64 is slow."""
    arguments = trained(name, 12, stages=("ibp", "crown-ibp", "crown"), attack_restarts=1)
    monkeypatch.setattr(crown, "has_fast_float64", lambda device: False)
    assert in_float32(arguments[0]) is not None
    first = evaluate(*arguments).verdicts
    monkeypatch.setattr(network, "in_float32", lambda *_: None)
    alone = evaluate(*arguments).verdicts
    decisions = [names.VERDICT, names.STAGE, names.PREDICTION]
    assert first[decisions].equals(alone[decisions])
    assert {"crown-ibp", "crown", "none"} & set(first[names.STAGE])
    assert not first.equals(alone)  # float32 proved some


@pytest.mark.parametrize(("name", "eps"), [("cnn5", "1/2"), pytest.param("cerdeq", "1/100", marks=pytest.mark.slow)])
def test_each_falsified_example_has_a_counterexample_that_the_network_gets_wrong(name, eps, problem, monkeypatch):
    """It may be a corner; verdicts, and the margin at the point that the attack found, are those without corners."""
    model, images, labels, settings = problem(name, eps=eps, stages=("ibp",), attack_steps=5)
    evaluation = evaluate(model, images, labels, settings)
    table = evaluation.verdicts
    falsified = table.loc[table[names.VERDICT] == names.FALSIFIED, names.INDEX].tolist()
    assert list(evaluation.proofs) == [str(index) for index in falsified] and 5 < len(falsified) <= 40
    stored = [evaluation.proofs[str(index)] for index in falsified]
    k = torch.stack([unpack(tensor, images.shape[1:]) for tensor in stored])
    with torch.no_grad():
        at_points = margins(model(decode(k, images[falsified].double() / 255, settings.eps)), labels[falsified])
    recorded = torch.tensor(table.loc[falsified, names.ATTACK_MARGIN].to_numpy())
    assert k.dtype == torch.int16 and (at_points < 0).all() and (recorded < 0).all()
    at_corner = (k.abs() == LEVELS).flatten(1).all(1)
    assert at_corner.tolist() == [tensor.dtype == torch.uint8 for tensor in stored] and at_corner.any()
    monkeypatch.setattr(attack, "corners", lambda k, x, eps: k)
    alone = evaluate(model, images, labels, settings)
    pd.testing.assert_frame_equal(alone.verdicts, table)
    k = torch.stack([alone.proofs[str(index)] for index in falsified])
    assert k.dtype == torch.int16
    with torch.no_grad():
        at_points = margins(model(decode(k, images[falsified].double() / 255, settings.eps)), labels[falsified])
    assert (at_points <= recorded).all()
    torch.testing.assert_close(at_points, recorded, atol=1e-3, rtol=1e-6)


def test_where_corners_raise_an_error_the_attack_s_points_are_stored(problem, monkeypatch):
    arguments = problem("cnn5", count=12, eps="1/2")
    expected = evaluate(*arguments)

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(attack, "corners", fail)
    evaluation = evaluate(*arguments)
    pd.testing.assert_frame_equal(evaluation.verdicts, expected.verdicts)
    assert evaluation.proofs.keys() == expected.proofs.keys() and evaluation.proofs
    assert {tensor.dtype for tensor in evaluation.proofs.values()} == {torch.int16}


def test_a_counterexample_that_is_not_proved_falsifies_nothing(problem, monkeypatch):
    monkeypatch.setattr(attack, "upper_margins", lambda program, points, *_: torch.zeros(len(points)).to(points))
    evaluation = evaluate(*problem("cnn5", eps="1/2"))
    assert names.FALSIFIED not in set(evaluation.verdicts[names.VERDICT]) and not evaluation.proofs


def test_proved_margins_of_points_are_above_the_exact_ones():
    """Of linear networks whose margins cancel to a few roundings, in rational numbers."""
    labels = torch.arange(3)
    for seed in range(20):
        torch.manual_seed(seed)
        points = torch.rand(3, 1, 1, 4, dtype=torch.float64)
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double().requires_grad_(False)
        model[1].weight.copy_(model[1].weight[0] * (1 + 1e-15 * torch.randn(3, 4)))
        model[1].bias.copy_(-points[0].flatten() @ model[1].weight[0])
        upper = attack.upper_margins(trace(model), points, labels, 3)
        assert (upper - margins(model(points), labels) < 1e-13).all()
        parameters = list(zip(model[1].weight.tolist(), model[1].bias.tolist(), strict=True))
        for label, point in enumerate(points.flatten(1).tolist()):
            logits = [
                Fraction(b) + sum(Fraction(w) * Fraction(v) for w, v in zip(row, point, strict=True))
                for row, b in parameters
            ]
            exact = min(logits[label] - logit for other, logit in enumerate(logits) if other != label)
            assert exact <= Fraction(upper[label].item())


@pytest.fixture
def change_bounds(monkeypatch):
    """Return a function that passes IBP's bounds, of which x are the images, through `change(bounds, x)`."""
    bound_margins = ibp.bound_margins

    def replace_by(change):
        monkeypatch.setattr(ibp, "bound_margins", lambda program, x, *rest: change(bound_margins(program, x, *rest), x))

    return replace_by


def test_a_bound_that_an_attack_refutes_is_an_error(problem, change_bounds):
    change_bounds(lambda bounds, x: replace(bounds, lower=torch.ones_like(bounds.lower)))
    with pytest.raises(SoundnessError, match="both certified and falsified"):
        evaluate(*problem("cnn5", eps="1/2"))


def test_a_bound_that_is_not_a_number_certifies_nothing(problem, change_bounds, monkeypatch):
    change_bounds(lambda bounds, x: replace(bounds, lower=bounds.lower * torch.nan))
    monkeypatch.setattr(stages, "lower_bounds", lambda program, x, spec, *_, **__: spec[:, :, 0] * torch.nan)
    table = evaluate(*problem("cnn5", eps=SMALL)).verdicts
    assert names.CERTIFIED not in set(table[names.VERDICT])


def test_a_network_of_which_no_image_can_be_evaluated_is_an_error(problem, monkeypatch):
    def fail(*_):
        raise UnsupportedOperator("no rule")

    monkeypatch.setattr(ibp, "bound_margins", fail)
    with pytest.raises(RuntimeError, match="none of 45 images can be evaluated: UnsupportedOperator: no rule"):
        evaluate(*problem("cnn5"))


def test_a_prediction_within_the_solver_s_error_does_not_count_as_correct(problem, monkeypatch):
    arguments, verified_box = problem("cerdeq", count=30, eps=SMALL), rules.verified_box

    def widened(*arguments):
        box = verified_box(*arguments)
        return Box(box.center, box.radius + 10.0)

    assert set(evaluate(*arguments).verdicts[names.VERDICT]) != {names.MISCLASSIFIED}
    monkeypatch.setattr(rules, "verified_box", widened)
    assert set(evaluate(*arguments).verdicts[names.VERDICT]) == {names.MISCLASSIFIED}


STATUSES = {  # answers of cerdeq.verify: the lower bound, and the verdict
    "certified": (0.5, names.CERTIFIED),
    "falsified": (-0.5, names.FALSIFIED),
    "unknown": (-0.5, names.UNKNOWN),
    "timeout": (torch.nan, names.TIMEOUT),
    "out of memory": (-0.5, names.OUT_OF_MEMORY),
    "falsified without a counterexample": (-0.5, names.UNKNOWN),
    "timeout with a proof": (0.5, names.TIMEOUT),
}


@pytest.mark.parametrize("answer", STATUSES)
def test_the_status_of_branch_and_bound_becomes_the_verdict(answer, problem, monkeypatch):
    bound, verdict = STATUSES[answer]
    model, images, labels, settings = problem("cnn5", count=25, eps="1/4")
    settings, calls = settings.replace(stages=("ibp", "bab"), attack_steps=1, bab_branches=40), []
    monkeypatch.setattr("harness.evaluation.ledger.free_memory", lambda: None)
    monkeypatch.setattr(attack, "worst_point", lambda model, x, *_: x)  # falsifies nothing
    if answer == "falsified":
        k = torch.zeros((1, 1, 8, 8), dtype=torch.int16)
        monkeypatch.setattr(stages, "margins_as_stored", lambda *_: (torch.tensor([-0.25]).double(), k))

    def verify(model, region, spec, seconds, branches, certificates):
        calls.append((len(spec), seconds, branches, next(model.parameters()).dtype))
        lower = torch.full(spec.shape[:2], bound, dtype=torch.float64)
        status, counterexample = [answer.split(" with")[0]], region.center
        return SimpleNamespace(
            status=status, lower=lower, counterexample=counterexample, branches=torch.tensor([7]), certificates=[{}]
        )

    monkeypatch.setattr("cerdeq.verify", verify)
    table = evaluate(model, images, labels, settings).verdicts
    bounded = table[names.STAGE].isin(["bab", "none"])
    assert bounded.sum() == len(calls) > 20 and set(calls) == {(1, 60.0, 40, torch.float64)}
    assert set(table.loc[bounded, names.VERDICT]) == {verdict}
    assert set(table.loc[bounded, names.STAGE]) == {"none" if answer == "unknown" else "bab"}
    assert (table.loc[bounded, names.REASON] != "").all() == ("without a counterexample" in answer)
    assert table.loc[~bounded, ["margin_bab", names.BRANCHES]].isna().all(axis=None)
    assert (table.loc[bounded, names.BRANCHES] == 7).all()
    assert table.loc[bounded, "margin_bab"].tolist() == pytest.approx([bound] * bounded.sum(), nan_ok=True)
    if answer == "falsified":
        assert (table.loc[bounded, names.ATTACK_MARGIN] == -0.25).all()


FAULTS = {  # of cerdeq.verify: the lower bound, and the error
    "certified": (-0.5, SoundnessError, "image 1: branch and bound says certified, with a bound of -0.5"),
    "falsified": (0.5, SoundnessError, "image 1: branch and bound says falsified, with a bound of 0.5"),
    "of another kind": (-0.5, ValueError, "'of another kind' is not a valid Verdict"),
}


@pytest.mark.parametrize("status", FAULTS)
def test_a_fault_of_branch_and_bound_ends_the_evaluation(status, problem, monkeypatch):
    bound, error, message = FAULTS[status]
    model, images, labels, settings = problem("cnn5", count=25, eps="1/4")
    monkeypatch.setattr(attack, "worst_point", lambda model, x, *_: x)

    def verify(model, region, spec, *_, **__):
        return SimpleNamespace(status=[status], lower=torch.full(spec.shape[:2], bound, dtype=torch.float64))

    monkeypatch.setattr("cerdeq.verify", verify)
    with pytest.raises(error, match=message):
        evaluate(model, images, labels, settings.replace(stages=("ibp", "bab"), attack_steps=1, bab_branches=40))


def test_only_searches_without_a_certificate_are_noted(monkeypatch):
    """Of images that linear bounds alone prove, the search returns none, and the checker needs none."""
    weak = {"attack_steps": 1, "attack_restarts": 1, "attack": "margin"}
    problem = trained("cnn5", 12, stages=("ibp", "alpha-crown"), certificates=True, **weak)
    evaluation = evaluate(*problem)
    table, certified = evaluation.verdicts, evaluation.verdicts[names.STAGE] == "alpha-crown"
    indices = table.loc[certified, names.INDEX]
    assert certified.any() and not all(f"{index}/row" in evaluation.proofs for index in indices)
    assert (table[names.REASON] == "").all()
    empty = SimpleNamespace(status=["timeout"], branches=torch.tensor([7]), certificates=[{}])
    monkeypatch.setattr("cerdeq.verify", lambda *_, **__: empty)
    table = evaluate(*problem).verdicts
    assert ((table[names.REASON] == names.NO_CERTIFICATE) == certified).all()
    monkeypatch.setattr("cerdeq.verify", lambda *_, **__: SimpleNamespace(status=["falsified"]))
    with pytest.raises(SoundnessError, match="certified, and falsified by the search for its certificate"):
        evaluate(*problem)


@pytest.mark.parametrize("name", ["cnn5", "cerdeq"])
def test_branch_and_bound_decides_more_examples_and_its_counterexamples_are_stored(name):
    """Of trained networks, at a radius where IBP decides little, after a weak attack."""
    weak = {"attack_steps": 1, "attack_restarts": 1, "attack": "margin"}
    search = {"stages": ("ibp", "bab"), "bab_seconds": None, "bab_branches": 30}
    evaluation = evaluate(*trained(name, 20, **search, **weak))
    table = evaluation.verdicts
    bounded = table[table[names.BRANCHES].notna()]
    assert set(bounded[names.STAGE]) == {"bab"} and names.CERTIFIED in set(bounded[names.VERDICT])
    assert set(bounded[names.VERDICT]) <= {names.CERTIFIED, names.FALSIFIED, names.TIMEOUT}
    falsified = table.index[table[names.VERDICT] == names.FALSIFIED].tolist()
    assert sorted(evaluation.proofs) == sorted(map(str, falsified))
    assert (table.loc[falsified, names.ATTACK_MARGIN] < 0).all()


@pytest.mark.parametrize("name", ["cnn5", "cerdeq"])
def test_a_diversified_attack_falsifies_what_a_weak_one_and_ibp_leave_undecided(name):
    """Of trained networks, after one step: an independent check confirms each, and IBP's images stay certified."""
    weak = {"attack_steps": 1, "attack_restarts": 1, "stages": ("ibp",)}
    model, images, labels, settings = trained(name, 40, **weak)
    before = evaluate(model, images, labels, settings).verdicts
    evaluation = evaluate(model, images, labels, settings.replace(attack="diversified"))
    table = evaluation.verdicts
    moved = table[table[names.VERDICT] != before[names.VERDICT]]
    assert len(moved) > 1 and set(before.loc[moved.index, names.VERDICT]) == {names.UNKNOWN}
    assert set(moved[names.VERDICT]) == {names.FALSIFIED} and set(moved[names.STAGE]) == {names.ATTACK}
    for index, label in zip(moved[names.INDEX], moved[names.LABEL], strict=True):
        pixels, point = images[index].numpy().astype(float), evaluation.proofs[str(index)].numpy()
        assert why_not_falsified(read_network(model), pixels, int(label), point, settings.eps) == ""
    where = table[names.VERDICT] == names.FALSIFIED
    assert (table.loc[where, names.ATTACK_MARGIN] < 0).all() and len(evaluation.proofs) == where.sum()


def narrow(pixel, gap):
    """Return a network whose margin of class 0 over class 1 is |x - pixel| - gap for the first pixel x."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.ReLU(), nn.Linear(2, 10)).double()
    for tensor in model.parameters():
        nn.init.zeros_(tensor)
    with torch.no_grad():
        model[1].weight[:, 0] = torch.tensor([1.0, -1.0])
        model[1].bias[:] = torch.tensor([-pixel, pixel])
        model[3].weight[0] = 1.0
        model[3].bias[:] = torch.tensor([0.0, gap, *[-1.0] * 8])
    return model.eval().requires_grad_(False)


def test_a_counterexample_that_its_short_form_moves_is_stored_as_it_is(tiny_evaluation):
    """The network is wrong for a hundredth of a level of the ball alone, between two levels."""
    settings = tiny_evaluation(eps="1/4", stages=("ibp", "bab"), bab_seconds=None, bab_branches=100)
    images = torch.full((1, 1, 8, 8), 128, dtype=torch.uint8)
    level = float(settings.eps) / LEVELS
    model = narrow(128 / 255 + 1000.5 * level, level / 100)
    evaluation = evaluate(model, images, torch.tensor([0]), settings)
    row = evaluation.verdicts.loc[0]
    assert (row[names.VERDICT], row[names.REASON]) == (names.FALSIFIED, "")
    (stored,) = evaluation.proofs.values()
    assert stored.dtype == torch.float64 and row[names.ATTACK_MARGIN] < 0
    pixels = images[0].numpy().astype(float)
    assert why_not_falsified(read_network(model), pixels, 0, stored.numpy(), settings.eps) == ""
