"""Verdicts, decided by the first stage that can, against other ways to them."""

import dataclasses
import itertools
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import nn

from baselines import build
from cerdeq import Box
from cerdeq.bounds import trace
from cerdeq.bounds.narrow import in_float32
from cerdeq.equilibrium import rules
from harness.attacks.counterexamples import decode
from harness.attacks.objectives import margins
from harness.config.settings import EvaluationSettings
from harness.data import load
from harness.evaluation import attack, ibp, network, stages
from harness.evaluation.equilibria import recurrence_report
from harness.evaluation.ibp import Bounds, errors_without_attack
from harness.evaluation.ledger import SoundnessError
from harness.evaluation.verdicts import NO_PREDICTION, evaluate
from harness.storage import folder, names
from harness.training import load_network
from harness.training.monitor import parametrisation_metrics

GOLDEN = Path(__file__).parents[1] / "golden"


def test_the_prediction_follows_from_the_margins():
    clean = torch.tensor([[0.5, 0.1], [-0.5, 0.1], [0.2, -0.1], [0.0, 1.0]])
    unread = {field.name: None for field in dataclasses.fields(Bounds)}
    bounds = Bounds(**unread | {"clean_lower": clean})
    assert bounds.prediction(torch.tensor([1, 1, 1, 0])).tolist() == [1, 0, 2, 1]


@pytest.fixture
def judged(tiny_trial):
    """A function of a network's name to (verdicts and all, network, images, labels, config)."""

    def make(name: str, count=90, **changes):
        config = tiny_trial(name, **changes)
        model = build(name, "digits", 0.1).double().eval()
        images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8)
        with torch.no_grad():
            labels = model(images.double() / 255).argmax(1)
        labels[::9] = (labels[::9] + 1) % 10
        return evaluate(model, images, labels, config), model, images, labels, config

    return make


@pytest.mark.parametrize("name", ["cnn5", "cerdeq"])
def test_verdicts_are_one_row_an_example_and_agree_with_the_network(judged, name):
    evaluation, model, images, _, _ = judged(name, eps="1/100000")
    table = evaluation.verdicts
    assert table[names.INDEX].tolist() == list(range(90))
    with torch.no_grad():
        assert table[names.PREDICTION].tolist() == model(images.double() / 255).argmax(1).tolist()
    assert set(table.loc[::9, names.VERDICT]) == {"misclassified"}
    certified = table[table[names.VERDICT] == "certified"]
    assert len(certified) > 0
    proved = certified[["margin_ibp", "margin_crown-ibp"]].max(axis=1)
    assert (proved > 0).all() and (certified["margin_ibp"] > 0).any()
    assert (certified[names.ATTACK_MARGIN] >= proved).all()
    assert set(table[names.STAGE]) <= {"clean", "attack", "ibp", "crown-ibp", "none"}


def by_stages(config, *stages):
    return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, stages=stages))


@pytest.mark.parametrize("name", ["cnn5", pytest.param("cerdeq", marks=pytest.mark.slow)])
def test_each_stage_asks_only_what_is_open_and_loses_no_proof(judged, name):
    second, model, images, labels, config = judged(name, count=45, eps="1/2000")
    assert config.evaluation.stages == ("ibp", "crown-ibp")
    first, last = (
        evaluate(model, images, labels, by_stages(config, *stages)).verdicts
        for stages in [("ibp",), ("ibp", "crown-ibp", "crown", "alpha-crown")]
    )
    tables = [first, second.verdicts, last]
    proved = [set(table.index[table[names.VERDICT] == "certified"]) for table in tables]
    assert proved[0] <= proved[1] <= proved[2] and len(proved[0]) < len(proved[2])
    for table in tables:
        assert table["margin_ibp"].notna().all()
        decided = ~table[names.VERDICT].isin(["certified", "unknown"])
        for earlier, later in itertools.pairwise(column for column in table if column.startswith("margin_")):
            decided |= table[earlier] > 0
            assert (table[later].isna() == decided).all()
            both = table[later].notna()
            assert (table.loc[both, later] >= table.loc[both, earlier]).all()
            assert (table.loc[both, names.ATTACK_MARGIN] >= table.loc[both, later]).all()


def test_verdicts_do_not_depend_on_the_batch(judged):
    evaluation, model, images, labels, config = judged("cnn5", eps="1/2000")  # 40 at a time
    settings = dataclasses.replace(config.evaluation, batch_size=7)
    whole, parts = (
        evaluation.verdicts,
        evaluate(model, images, labels, dataclasses.replace(config, evaluation=settings)),
    )
    parts = parts.verdicts
    assert (whole["margin_crown-ibp"].isna() == parts["margin_crown-ibp"].isna()).all()
    assert whole[names.VERDICT].equals(parts[names.VERDICT])
    assert whole[names.ATTACK_MARGIN].tolist() == pytest.approx(
        parts[names.ATTACK_MARGIN].tolist(), abs=1e-7, nan_ok=True
    )
    both = whole["margin_crown-ibp"].notna() & parts["margin_crown-ibp"].notna()
    assert both.any()
    found, expected = (table.loc[both, "margin_crown-ibp"].tolist() for table in (whole, parts))
    assert found == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("name", ["cnn5", "cerdeq"])
def test_float32_first_gives_the_verdicts_of_float64_alone(name, monkeypatch):
    """Of trained networks, on images so near a radius that some margins are."""
    trained = GOLDEN / name
    config = by_stages(folder.read_trial(trained / folder.TRIAL).config, "ibp", "crown-ibp", "crown")
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, attack_restarts=1))
    test = load(config.dataset).test_images(40)
    model = load_network(config, trained / folder.WEIGHTS)
    assert in_float32(model) is not None
    first = evaluate(model, test.images, test.labels, config).verdicts
    monkeypatch.setattr(network, "in_float32", lambda *_: None)
    alone = evaluate(model, test.images, test.labels, config).verdicts
    decided = [names.VERDICT, names.STAGE, names.PREDICTION]
    assert first[decided].equals(alone[decided])
    assert {"crown-ibp", "crown", "none"} & set(first[names.STAGE])
    assert not first.equals(alone)  # float32 did prove some


def test_relu_states_of_a_point_are_its_own_and_a_ball_adds_unstable_ones(judged):
    whole, model, images, labels, config = judged("cnn5", eps="1/100000000")
    seen, hooks = {}, []
    relus = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
    for name, module in relus:
        hook = module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
        hooks.append(hook)
    with torch.no_grad():
        model(images.double() / 255)
    for hook in hooks:
        hook.remove()
    for name, before in seen.items():
        off = 100 * float((before <= 0).double().mean())
        assert whole.layers[names.layer_inactive(name)] == pytest.approx(off, abs=0.1)
        assert whole.layers[names.layer_unstable(name)] < 0.1
    wide = evaluate(model, images, labels, dataclasses.replace(config, eps=Fraction(1, 4))).layers
    assert all(wide[names.layer_unstable(name)] > 10 for name in seen)
    assert all(wide[names.layer_unstable(name)] + wide[names.layer_inactive(name)] <= 100 for name in seen)


def test_bounds_do_not_depend_on_the_slices(judged, monkeypatch):
    _, model, images, labels, config = judged("cnn5", eps="1/2000")
    whole, parts = (_bounds_in_slices(monkeypatch, size, model, images, labels, config) for size in (90, 7))
    for field in ("lower", "width", "clean", "clean_lower"):
        torch.testing.assert_close(getattr(whole, field), getattr(parts, field), rtol=1e-9, atol=1e-9)
    assert whole.layers == pytest.approx(parts.layers)
    with torch.no_grad():
        outputs = model(images.double() / 255)
    others = outputs.scatter(1, labels[:, None], torch.inf)
    clean = outputs.gather(1, labels[:, None]) - others[others.isfinite()].view(len(labels), -1)
    torch.testing.assert_close(parts.clean, clean)


def _bounds_in_slices(monkeypatch, size, model, images, labels, config):
    monkeypatch.setattr(ibp, "examples_in_cache", lambda *_: size)
    return ibp.bound_margins(trace(model), images.double() / 255, labels, 10, config.eps)


def test_a_large_eps_certifies_nothing_and_breaks_much(judged):
    evaluation, *_ = judged("cnn5", eps="1/2")
    counts = evaluation.verdicts[names.VERDICT].value_counts()
    assert "certified" not in counts
    assert counts["falsified"] > 0


@pytest.mark.parametrize(("name", "eps"), [("cnn5", "1/2"), pytest.param("cerdeq", "1/100", marks=pytest.mark.slow)])
def test_each_falsified_example_has_a_counterexample_that_the_network_gets_wrong(name, eps, judged):
    evaluation = EvaluationSettings(stages=("ibp",), attack_steps=5, attack_restarts=1, batch_size=40)
    evaluation, model, images, labels, config = judged(name, eps=eps, evaluation=evaluation)
    table = evaluation.verdicts
    falsified = table.loc[table[names.VERDICT] == names.FALSIFIED, names.INDEX].tolist()
    assert list(evaluation.evidence) == [str(index) for index in falsified] and 5 < len(falsified) <= 80
    k = torch.stack([evaluation.evidence[str(index)] for index in falsified])
    assert k.dtype == torch.int16
    points = decode(k, images[falsified].double() / 255, config.eps)
    with torch.no_grad():
        least = margins(model(points), labels[falsified])
    assert (least <= 0).all()
    recorded = torch.tensor(table.loc[falsified, names.ATTACK_MARGIN].to_numpy())
    assert ((least <= recorded) & (recorded < 0)).all()
    torch.testing.assert_close(least, recorded, atol=1e-3, rtol=1e-6)


def test_a_counterexample_that_is_not_proved_falsifies_nothing(judged, monkeypatch):
    monkeypatch.setattr(attack, "upper_margins", lambda program, points, *_: torch.zeros(len(points)).to(points))
    evaluation, *_ = judged("cnn5", eps="1/2")
    assert names.FALSIFIED not in set(evaluation.verdicts[names.VERDICT]) and not evaluation.evidence


def test_what_ibp_proved_is_attacked_once_by_the_margin(judged, monkeypatch):
    asked, honest = [], attack.worst_point

    def watched(follower, x, labels, eps, settings, seed, indices):
        asked.append((settings.attack, settings.attack_restarts, set(indices.tolist())))
        return honest(follower, x, labels, eps, settings, seed, indices)

    monkeypatch.setattr(attack, "worst_point", watched)
    evaluation = EvaluationSettings(stages=("ibp",), attack="all", attack_steps=2, attack_restarts=2)
    evaluation, *_ = judged("cnn5", eps="1/2000", evaluation=evaluation)
    table = evaluation.verdicts
    right, proved = table[names.VERDICT] != names.MISCLASSIFIED, table["margin_ibp"] > 0
    assert asked == [("all", 2, set(table.index[right & ~proved])), ("margin", 1, set(table.index[right & proved]))]


@pytest.mark.parametrize("seed", range(20))
def test_proved_margins_of_points_are_above_the_exact_ones(seed):
    """Of linear networks whose margins cancel to a few roundings, in rationals."""
    torch.manual_seed(seed)
    points = torch.rand(3, 1, 1, 4, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        model[1].weight.copy_(model[1].weight[0] * (1 + 1e-15 * torch.randn(3, 4)))
        model[1].bias.copy_(-points[0].flatten() @ model[1].weight[0])
        labels = torch.arange(3)
        upper = attack.upper_margins(trace(model), points, labels, 3)
        assert (upper - margins(model(points), labels) < 1e-13).all()
    weight, bias = ([[Fraction(v) for v in row] for row in p.tolist()] for p in (model[1].weight, model[1].bias[None]))
    for row, point in enumerate(points.flatten(1).tolist()):
        logits = [
            b + sum(w * Fraction(v) for w, v in zip(ws, point, strict=True))
            for ws, b in zip(weight, bias[0], strict=True)
        ]
        exact = min(logits[row] - logit for other, logit in enumerate(logits) if other != row)
        assert exact <= Fraction(upper[row].item())


def test_errors_without_attack_are_those_of_the_verdicts(judged):
    evaluation, model, images, labels, config = judged("cnn5", eps="1/100000")
    verdict = evaluation.verdicts[names.VERDICT]
    expected = 100 * (verdict == "misclassified").mean(), 100 * (verdict != "certified").mean()
    assert errors_without_attack(model, images, labels, config) == pytest.approx(expected)


def test_a_bound_that_an_attack_refutes_is_an_error_and_no_row(judged, monkeypatch):
    honest = ibp.bound_margins

    def lying(*arguments):
        bounds = honest(*arguments)
        return dataclasses.replace(bounds, lower=torch.ones_like(bounds.lower))

    monkeypatch.setattr(ibp, "bound_margins", lying)
    with pytest.raises(SoundnessError, match="both certified and refuted"):
        judged("cnn5", eps="1/2")


def test_a_bound_that_is_not_a_number_certifies_nothing(judged, monkeypatch):
    honest = ibp.bound_margins

    def broken(*arguments):
        bounds = honest(*arguments)
        return dataclasses.replace(bounds, lower=bounds.lower * torch.nan)

    monkeypatch.setattr(ibp, "bound_margins", broken)
    monkeypatch.setattr(stages, "lower_bounds", lambda program, x, spec, *_, **__: spec[:, :, 0] * torch.nan)
    evaluation, *_ = judged("cnn5", eps="1/100000")
    assert "certified" not in set(evaluation.verdicts[names.VERDICT])


def test_an_image_whose_clean_solve_fails_is_no_misclassification(judged, monkeypatch):
    sure, model, images, labels, config = judged("cnn5", eps="1/100000")
    honest = ibp.bound_margins

    def faulty(program, x, *arguments):
        if any(torch.equal(image, images[5].double() / 255) for image in x):
            raise ArithmeticError("no equilibrium")
        return honest(program, x, *arguments)

    monkeypatch.setattr(ibp, "bound_margins", faulty)
    table = evaluate(model, images, labels, config).verdicts
    row = table.loc[5]
    assert row[[names.VERDICT, names.STAGE, names.PREDICTION]].tolist() == ["failed", "clean", NO_PREDICTION]
    assert row[names.REASON] == "ArithmeticError: no equilibrium"
    assert row[["margin_ibp", "margin_crown-ibp", names.ATTACK_MARGIN, names.WIDTH]].isna().all()
    decided = [names.PREDICTION, names.VERDICT, names.STAGE]
    assert table.drop(index=5)[decided].equals(sure.verdicts.drop(index=5)[decided])


def test_a_network_of_which_no_image_can_be_judged_has_no_verdicts(judged, monkeypatch):
    def broken(*_):
        raise TypeError("no rule")

    monkeypatch.setattr(ibp, "bound_margins", broken)
    with pytest.raises(RuntimeError, match="none of 40 images can be evaluated: TypeError: no rule"):
        judged("cnn5")


def test_a_prediction_within_the_solver_s_error_is_not_taken_for_right(judged, monkeypatch):
    sure, model, images, labels, config = judged("cerdeq", eps="1/100000")
    right = sure.verdicts[names.VERDICT] != "misclassified"
    honest = rules.verified_box

    def loose(*asked):
        box = honest(*asked)
        return Box(box.center, box.radius + 10.0)

    monkeypatch.setattr(rules, "verified_box", loose)
    unsure = evaluate(model, images, labels, config).verdicts
    assert right.any() and (unsure[names.VERDICT] == "misclassified").all()


def test_what_the_recurrence_does_is_reported(judged):
    _, model, images, labels, config = judged("cerdeq", eps="1/100000")
    report = recurrence_report(model, images, labels, config)
    assert 0.3 < report[names.RHO_BOUND] <= 0.3501
    assert report[names.ITERATIONS] > 2
    assert 0 < report[names.RESIDUAL] < 1e-8 and report[names.NOT_CONVERGED] == 0
    model.equilibrium.recurrence.parametrizations.weight.original.data.zero_()
    idle = errors_without_attack(model, images, labels, config)
    assert (report[names.STANDARD_ERROR_W0], report[names.CERTIFIED_ERROR_W0]) == pytest.approx(idle)
    assert parametrisation_metrics(model) == pytest.approx({names.GAIN: 0.5, names.MARGIN: 0.3})


def test_networks_without_an_equilibrium_report_none(judged):
    _, model, images, labels, config = judged("cnn5")
    assert recurrence_report(model, images, labels, config) == parametrisation_metrics(model) == {}
