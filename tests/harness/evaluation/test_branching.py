"""Branch and bound as the last stage: what it says becomes a verdict, and no other."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import cerdeq
from baselines import build
from harness.data import load
from harness.evaluation.ledger import SoundnessError
from harness.evaluation.metrics import final_metrics, warnings
from harness.evaluation.verdicts import evaluate
from harness.storage import folder, names
from harness.training import load_network

NAN = torch.nan
SAID = {  # what cerdeq.verify answers: the lower bounds' least, whether its point is a counterexample; the verdict
    "certified": (0.5, False, names.CERTIFIED),
    "falsified": (-0.5, True, names.FALSIFIED),
    "unknown": (-0.5, False, names.UNKNOWN),
    "timeout": (NAN, False, names.TIMEOUT),
    "out of memory": (-0.5, False, names.OUT_OF_MEMORY),
    "certified without a bound": (-0.5, False, names.FAILED),
    "falsified without a counterexample": (-0.5, False, names.FAILED),
    "timeout with a proof": (0.5, False, names.FAILED),
    "of another kind": (-0.5, False, names.FAILED),
}


@pytest.fixture
def branched(tiny_trial, monkeypatch):
    """A function of what `cerdeq.verify` says to (the evaluation, config, what it was asked)."""

    def run(said):
        evaluation = {"stages": ("ibp", "bab"), "attack_restarts": 1, "attack_steps": 1, "bab_branches": 40}
        config = tiny_trial(eps="1/4")
        config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, **evaluation))
        model, asked = build("cnn5", "digits", 0.1).double().eval(), []
        images = torch.randint(0, 256, (25, 1, 8, 8), dtype=torch.uint8)
        with torch.no_grad():
            labels = model(images.double() / 255).argmax(1)
        monkeypatch.setattr("harness.evaluation.ledger.free_memory", lambda: None)
        monkeypatch.setattr("harness.evaluation.attack.worst_point", lambda model, x, *_: x)  # breaks nothing
        if said == "falsified":  # by the test's word
            monkeypatch.setattr(
                "harness.evaluation.branching.margins_at", lambda *_: torch.tensor([-0.25], dtype=torch.float64)
            )
        least, _, _ = SAID[said]

        def verify(model, region, spec, seconds, branches, certificates):
            asked.append((len(spec), seconds, branches, next(model.parameters()).dtype))
            status = said.split(" with")[0]
            lower = torch.full(spec.shape[:2], least, dtype=torch.float64)
            point = region.center if hasattr(region, "center") else images[:1].double()
            found = {"status": [status], "lower": lower, "counterexample": point, "branches": torch.tensor([7])}
            return SimpleNamespace(**found, certificates=[{}])

        monkeypatch.setattr(cerdeq, "verify", verify, raising=False)
        return evaluate(model, images, labels, config), config, asked

    return run


@pytest.mark.parametrize("said", SAID)
def test_what_branch_and_bound_says_is_the_verdict(branched, said):
    evaluation, config, asked = branched(said)
    least, broken, verdict = SAID[said]
    table = evaluation.verdicts
    came = table[names.STAGE].isin(["bab", "none"])
    assert came.sum() == len(asked) > 20
    assert set(asked) == {(1, 60.0, 40, torch.float64)}
    assert set(table.loc[came, names.VERDICT]) == {verdict}
    assert set(table.loc[came, names.STAGE]) == {"none" if verdict == names.UNKNOWN else "bab"}
    assert (table.loc[came, names.REASON] != "").all() == (verdict == names.FAILED)
    assert table.loc[~came, ["margin_bab", names.BRANCHES]].isna().all(axis=None)
    if verdict != names.FAILED:
        assert (table.loc[came, names.BRANCHES] == 7).all()
        assert table.loc[came, "margin_bab"].tolist() == pytest.approx([least] * came.sum(), nan_ok=True)
    if broken:
        assert (table.loc[came, names.ATTACK_MARGIN] == -0.25).all()
    metrics = final_metrics(evaluation, config.evaluation.stages)
    assert metrics[names.UNDECIDED_ERROR] == pytest.approx(metrics["certified_error"] - metrics["attack_error"])
    assert metrics[names.examples_at("bab")] == len(asked)
    assert metrics[names.decided_by("bab")] == (0 if verdict in names.UNDECIDED else len(asked))
    told = [line for line in warnings(evaluation, {}) if " in bab: " in line]
    assert bool(told) == (verdict in (names.FAILED, names.OUT_OF_MEMORY))


def test_a_proof_beside_a_counterexample_stops_everything(branched, monkeypatch):
    monkeypatch.setitem(SAID, "falsified", (0.5, True, None))
    with pytest.raises(SoundnessError):
        branched("falsified")


@pytest.mark.parametrize("name", ["cnn5", "cerdeq"])
def test_branch_and_bound_itself_decides_more_and_its_counterexamples_are_kept(name):
    """Of trained networks, at a radius where IBP leaves much open, with an attack that finds little."""
    trained = Path(__file__).parents[1] / "golden" / name
    config = folder.read_trial(trained / folder.TRIAL).config
    settings = {"stages": ("ibp", "bab"), "attack_steps": 1, "attack_restarts": 1, "attack": "margin"}
    settings |= {"bab_seconds": None, "bab_branches": 60}
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, **settings))
    test = load(config.dataset).test_images(20)
    network = load_network(config, trained / folder.WEIGHTS)
    evaluation = evaluate(network, test.images, test.labels, config)
    table = evaluation.verdicts
    asked = table[names.BRANCHES].notna()
    assert asked.any() and (table.loc[asked, names.STAGE] == "bab").all()
    assert set(table.loc[asked, names.VERDICT]) <= {names.CERTIFIED, names.FALSIFIED, names.TIMEOUT}
    assert names.CERTIFIED in set(table.loc[asked, names.VERDICT])
    falsified = table.index[table[names.VERDICT] == names.FALSIFIED].tolist()
    assert sorted(evaluation.evidence) == sorted(map(str, falsified))
    assert (table.loc[falsified, names.ATTACK_MARGIN] < 0).all()
