"""The images of an evaluation are divided into ranges, which are saved one by one and joined to the whole."""

import pandas as pd
import pytest
import torch
from torch import nn

from baselines import build
from harness.data import Split, load
from harness.evaluation.network import prepare_network
from harness.evaluation.ranges import (
    evaluate_range,
    finish_evaluation,
    hash_inputs,
    join_ranges,
    missing_ranges,
    plan_ranges,
    read_range,
)
from harness.evaluation.verdicts import evaluate
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
        (10**7, {}, 55),
        (10**7, {"attack_steps": 20}, 111),
        (3 * 10**7, {}, 20),
        (10, {"stages": ("ibp", "bab"), "bab_seconds": 100.0}, 240),
        (10, {"stages": ("ibp", "bab"), "bab_seconds": 1e6}, 1),
        (10, {"stages": ("ibp", "bab"), "bab_seconds": None, "bab_branches": 9}, 500),
    ],
)
def test_ranges_have_each_image_once_and_few_where_the_attack_or_branch_and_bound_is_slow(units, settings, size):
    """The network takes two operations a unit; the attack takes 3 x 40 x 3 passes."""
    images = Split(torch.zeros(1100, 1, 1, 1, dtype=torch.uint8), torch.zeros(1100))
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, units, bias=False, dtype=torch.float64))
    planned = plan_ranges(images, network, 10, Evaluation(attack="margin", **settings))
    assert [image for each in planned for image in each] == list(range(1100))
    assert {len(each) for each in planned[:-1]} <= {size}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build("cnn5", dataset="digits", width=0.1).double().eval()


@pytest.fixture(scope="module")
def config(tiny_trial):
    return tiny_trial(eps="1/16", width=0.1)


@pytest.fixture(scope="module")
def split(network):
    """Forty images, with the network's own predictions as labels, so that there is something to attack."""
    images = load("digits").test.images[:40]
    with torch.no_grad():
        return Split(images, network(images.double() / 255).argmax(1))


@pytest.fixture
def evaluated(network, split, config, tmp_path):
    """The folder of three ranges of forty images."""
    ranges_dir = ranges.ranges_dir(tmp_path, "0")
    ranges.begin_ranges(ranges_dir)
    for images in PLANNED:
        evaluate_range(ranges_dir, images, prepare_network(network, config.evaluation.stages), split, config)
    return ranges_dir


def test_ranges_are_joined_to_the_evaluation_of_all_images(network, split, config, evaluated):
    at_once = evaluate(network, split.images, split.labels, config)
    joined = join_ranges([read_range(evaluated, images) for images in PLANNED])
    pd.testing.assert_frame_equal(joined.verdicts, at_once.verdicts, check_dtype=False)
    assert joined.verdicts.dtypes.drop(TEXTS).equals(at_once.verdicts.dtypes.drop(TEXTS))
    assert joined.layers == pytest.approx(at_once.layers)
    assert joined.clean_mean == pytest.approx(at_once.clean_mean)
    assert joined.clean_spread == pytest.approx(at_once.clean_spread, rel=1e-2)
    assert joined.seconds.keys() == at_once.seconds.keys()
    assert joined.proofs.keys() == at_once.proofs.keys() and len(joined.proofs) > 0
    assert all(joined.proofs[name].equal(tensor) for name, tensor in at_once.proofs.items())


def test_what_is_missing_or_damaged_is_left_to_do(config, evaluated, tmp_path):
    assert missing_ranges(evaluated, PLANNED) == []
    assert ranges.count_saved_images(tmp_path) == 40
    ranges.range_path(evaluated, PLANNED[0]).write_bytes(b"nothing")
    ranges.range_path(evaluated, PLANNED[2]).unlink()
    assert missing_ranges(evaluated, PLANNED) == [PLANNED[0], PLANNED[2]]
    with pytest.raises(DamagedFileError, match=r"00000-00015\.pt cannot be read"):
        finish_evaluation(tmp_path, evaluated, PLANNED, config, {})
    assert not (tmp_path / folder.VERDICTS).exists()


def test_ranges_of_other_inputs_are_removed(evaluated, tmp_path):
    assert not ranges.begin_ranges(evaluated)
    other = ranges.ranges_dir(tmp_path, "1")
    assert ranges.begin_ranges(other)
    assert ranges.count_saved_images(tmp_path) == 0 and missing_ranges(other, PLANNED) == PLANNED


def test_the_hash_is_of_weights_trial_settings_and_versions(config):
    inputs = [b"weights", "key", config, {"torch": "2"}]
    others = [b"other", "other", config.replace(evaluation=config.evaluation.replace(attack_steps=9)), {"torch": "3"}]
    hashes = {hash_inputs(*inputs[:i], other, *inputs[i + 1 :]) for i, other in enumerate(others)}
    assert len(hashes | {hash_inputs(*inputs)}) == 5
