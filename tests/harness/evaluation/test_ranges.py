"""The images of an evaluation are divided into ranges, which are saved one by one and joined to the whole."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from networks import GOLDEN
from torch import nn

import cerdeq
from cerdeq.equilibrium import FixedPoint
from harness.common.errors import SettingError
from harness.common.radius import Radius
from harness.data import load
from harness.evaluation import equilibria
from harness.evaluation import ranges as evaluation_ranges
from harness.evaluation.equilibria import Recurrence, observe_recurrence
from harness.evaluation.network import load_network
from harness.evaluation.ranges import join_ranges, open_evaluation, plan_ranges, read_range
from harness.settings import Evaluation
from harness.storage import folder, ranges
from harness.storage.files import DamagedFileError

PLANNED = [range(0, 15), range(15, 30), range(30, 40)]
TEXTS = ["verdict", "stage", "reason"]


@pytest.mark.parametrize(
    ("units", "settings", "size"),
    [
        (10, {}, 500),
        (10, {"batch_size": 7}, 7),
        (10**5, {}, 75),
        (10**5, {"attack_steps": 20}, 150),
        (10**6, {}, 20),
        (10, {"stages": ("ibp", "bab"), "bab_seconds": 100.0}, 240),
        (10, {"stages": ("ibp", "bab"), "bab_seconds": 1e6}, 1),
        (10, {"stages": ("ibp", "bab"), "bab_seconds": None, "bab_branches": 9}, 80),
    ],
)
def test_ranges_have_each_image_once_and_few_where_the_attack_or_branch_and_bound_is_slow(
    units, settings, size, tiny_training
):
    """The attack takes 3 x 40 x 3 passes; the network of 64 inputs two operations for each of its weights."""
    config = tiny_training("fc", options={"hidden": [units]}, width=1.0)
    evaluation = Evaluation(eps="1/8", **{"attack": "margin", "attack_restarts": 3, **settings})
    planned = plan_ranges(config, evaluation, 1100, "cpu")
    assert [image for each in planned for image in each] == list(range(1100))
    assert {len(each) for each in planned[:-1]} <= {size}


@pytest.fixture(params=["cnn5", "cerdeq"])
def network_dir(request, tmp_path):
    """The folder of a trained network without evaluations."""
    return shutil.copytree(GOLDEN / request.param, tmp_path / request.param, ignore=lambda *_: [folder.EVALUATIONS])


def open_at(network_dir, evaluation):
    """Open an evaluation of forty images in three ranges."""
    return open_evaluation(network_dir, evaluation.replace(test_images=40, batch_size=15), load("digits"))


@pytest.fixture
def evaluation(tiny_evaluation):
    return tiny_evaluation(eps="1/8", stages=("ibp",))


def test_ranges_are_joined_to_the_evaluation_of_all_images(network_dir, evaluation):
    opened = open_at(network_dir, evaluation)
    for images in PLANNED:
        opened.evaluate_range(images)
    joined = join_ranges([read_range(opened.ranges_dir, images) for images in PLANNED])
    opened.evaluate_range(range(40))
    at_once = read_range(opened.ranges_dir, range(40))
    pd.testing.assert_frame_equal(joined.verdicts, at_once.verdicts, check_dtype=False)
    assert joined.verdicts.dtypes.drop(TEXTS).equals(at_once.verdicts.dtypes.drop(TEXTS))
    assert joined.layers == pytest.approx(at_once.layers)
    assert joined.clean_mean == pytest.approx(at_once.clean_mean)
    assert joined.clean_spread == pytest.approx(at_once.clean_spread, rel=1e-2)
    assert joined.seconds.keys() == at_once.seconds.keys()
    assert joined.proofs.keys() == at_once.proofs.keys() and len(joined.proofs) > 0
    assert all(joined.proofs[name].equal(tensor) for name, tensor in at_once.proofs.items())
    assert bool(at_once.recurrence.rates) == (network_dir.name == "cerdeq")
    assert joined.recurrence.metrics() == pytest.approx(at_once.recurrence.metrics(), rel=1e-6)


@pytest.mark.parametrize("network_dir", ["cnn5"], indirect=True)
def test_what_is_missing_or_damaged_is_not_joined(network_dir, evaluation):
    opened = open_at(network_dir, evaluation)
    for images in PLANNED:
        opened.evaluate_range(images)
    assert ranges.count_saved_images(opened.directory) == 40
    path = ranges.range_path(opened.ranges_dir, PLANNED[0])
    path.write_bytes(b"nothing")
    with pytest.raises(DamagedFileError, match=r"00000-00015\.pt cannot be read"):
        opened.finish()
    path.unlink()
    with pytest.raises(SettingError, match=r"evaluated images: found '25 in .*allowed: all 40"):
        opened.finish()
    assert not (opened.directory / folder.VERDICTS).exists()


@pytest.mark.parametrize("network_dir", ["cnn5"], indirect=True)
def test_ranges_of_other_weights_settings_or_versions_lie_elsewhere(network_dir, evaluation, monkeypatch):
    opened = open_at(network_dir, evaluation)
    environment = {**opened.environment, "torch": "0"}
    with monkeypatch.context() as patch:
        patch.setattr(evaluation_ranges, "describe_environment", lambda device: environment)
        assert open_at(network_dir, evaluation).ranges_dir != opened.ranges_dir
    weights = bytearray((network_dir / folder.WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (network_dir / folder.WEIGHTS).write_bytes(weights)
    with pytest.raises(DamagedFileError, match="is not the file of which"):
        open_at(network_dir, evaluation)
    folder.write_trained(network_dir, folder.read_trained(network_dir))
    assert open_at(network_dir, evaluation).ranges_dir != opened.ranges_dir
    assert open_at(network_dir, evaluation.replace(attack_steps=9)).directory != opened.directory


@pytest.mark.parametrize("stages", [("ibp", "bab"), ("ibp", "crown")], ids=["bab", "certificates"])
@pytest.mark.parametrize("network_dir", ["cnn5"], indirect=True)
def test_a_kill_within_a_range_loses_one_search(network_dir, evaluation, stages, monkeypatch):
    """Of an image, or for its certificate; the result is that of an evaluation without a kill."""
    limits = {"bab_seconds": None, "bab_branches": 4, "certificates": True}
    evaluation = evaluation.replace(stages=stages, attack="margin", attack_steps=1, attack_restarts=1, **limits)
    searched, verify, allowed = [], cerdeq.verify, [100]

    def count(model, region, *arguments, **options):
        if len(searched) == allowed[0]:
            raise KeyboardInterrupt
        searched.append(region.center)
        return verify(model, region, *arguments, **options)

    monkeypatch.setattr(cerdeq, "verify", count)
    opened, images = open_at(network_dir, evaluation), PLANNED[0]
    opened.evaluate_range(images)
    expected, whole = read_range(opened.ranges_dir, images), len(searched)
    ranges.range_path(opened.ranges_dir, images).unlink()
    assert not any(opened.ranges_dir.iterdir()) and whole > 2
    searched.clear()
    allowed[0] = 2
    with pytest.raises(KeyboardInterrupt):
        opened.evaluate_range(images)
    assert len(list(opened.ranges_dir.glob("*.search"))) == 2
    allowed[0] = 100
    opened.evaluate_range(images)
    assert len(searched) == whole, "each image once"
    again = read_range(opened.ranges_dir, images)
    pd.testing.assert_frame_equal(again.verdicts, expected.verdicts)
    assert again.proofs.keys() == expected.proofs.keys()
    assert all(torch.equal(tensor, expected.proofs[name]) for name, tensor in again.proofs.items())
    assert [path.name for path in opened.ranges_dir.iterdir()] == ["00000-00015.pt"]


@pytest.mark.parametrize("network_dir", ["cnn5"], indirect=True)
def test_each_range_has_its_share_of_the_seconds_of_all_images(network_dir, evaluation, monkeypatch):
    limits = []

    def verify(model, region, spec, seconds, branches, certificates):
        limits.append(seconds)
        lower, branches = torch.full(spec.shape[:2], -1.0), torch.tensor([1])
        return SimpleNamespace(status=["timeout"], lower=lower, branches=branches, certificates=[{}])

    monkeypatch.setattr(cerdeq, "verify", verify)
    settings = {"stages": ("ibp", "bab"), "bab_seconds": 1e3, "bab_branches": 1, "bab_total_seconds": 400.0}
    opened = open_at(network_dir, evaluation.replace(eps="1/12", **settings))
    for images, share in zip(PLANNED, (150.0, 150.0, 100.0), strict=True):
        limits.clear()
        opened.evaluate_range(images)
        assert limits[0] == share and limits == sorted(limits, reverse=True)


def observe(network_dir, first, count):
    model = load_network(folder.read_training(network_dir / folder.TRAINING).config, network_dir / folder.WEIGHTS)
    images = load("digits").test.part(first, first + count)
    return observe_recurrence(model, images.images.double() / 255, images.labels, first, Radius("1/8"), 10)


@pytest.mark.parametrize("network_dir", ["cerdeq"], indirect=True)
def test_what_recurrences_do_is_the_same_over_ranges_and_solves_the_first_images_alone(network_dir, monkeypatch):
    monkeypatch.setattr(equilibria, "_SOLVED_IMAGES", 12)
    whole, parts = observe(network_dir, 0, 20), [observe(network_dir, first, 5) for first in (0, 5, 10, 15)]
    assert [part.solved for part in parts] == [5, 5, 2, 0] and whole.solved == 12
    joined = equilibria.join(parts)
    assert (joined.correct, joined.certified, joined.images) == (whole.correct, whole.certified, 20)
    assert 0 < joined.certified < joined.correct < 20 and joined.iterations == whole.iterations
    assert joined.metrics() == pytest.approx(whole.metrics(), rel=1e-6)
    assert equilibria.join([parts[3]]).images == 5, "a range without solved images"


@pytest.mark.parametrize("network_dir", ["cerdeq"], indirect=True)
def test_solves_that_miss_the_tolerance_are_counted(network_dir, monkeypatch):
    part = observe(network_dir, 0, 4)
    missed = replace(part, missed=[3])
    assert part.metrics()["equilibrium/not_converged"] == 0
    assert equilibria.join([missed, part]).metrics()["equilibrium/not_converged"] == pytest.approx(100 * 3 / 8)


def test_what_is_observed_is_the_solve_of_the_network_itself():
    """At rho .9995 Picard iteration misses the tolerance in 20,000 iterations, and the network meets it."""
    weight = 0.9995 * torch.eye(4, dtype=torch.float64)
    layers = [nn.Flatten(), nn.Linear(64, 4), FixedPoint(weight), nn.Linear(4, 10)]
    model, images = nn.Sequential(*layers).double().eval(), load("digits").test_images(8)
    observed = observe_recurrence(model, images.images.double() / 255, images.labels, 0, Radius("1/100"), 10)
    metrics = observed.metrics()
    assert metrics["equilibrium/not_converged"] == 0 and metrics["equilibrium/residual"] <= 1e-10
    assert 1 <= metrics["equilibrium/iterations"] < 100


def test_a_network_without_equilibria_has_no_metrics_of_them():
    assert equilibria.join([Recurrence(), Recurrence()]).metrics() == {}
