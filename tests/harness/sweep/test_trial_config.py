"""A trial's config checks itself, survives JSON, and is named by its key."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest

from cerdeq.bounds import BOUNDS
from harness.common.errors import SettingError
from harness.settings import STAGES, EvaluationSettings, TrainSettings
from harness.storage import folder
from harness.storage.parquet import read_table
from harness.sweep import trial_config
from harness.sweep.buildable import check_buildable
from harness.sweep.imported_network import TRAINED_ELSEWHERE, Checkpoint, Source
from harness.sweep.trial_config import TrialConfig, digest_content, from_dict, identity, labels, to_dict, trial_key

PUBLISHED = sorted((Path(__file__).resolve().parents[3] / "results/published").glob("*/trials.parquet"))
FINGERPRINT = "0123456789abcdef"
GOLDEN = TrialConfig(
    sweep="study",
    profile="cpu",
    dataset="cifar10",
    eps="8/255",
    seed=3,
    model="cerdeq",
    method="ibp",
    options={"margin": 0.1, "gain": None},
    width=0.25,
    train_images=1000,
    validation_images=10,
    train=TrainSettings(epochs=10, decay_epochs=(7, 9), ramp_epochs=5),
    evaluation=EvaluationSettings(test_images=100),
)
OTHER = {
    "sweep": "other",
    "profile": "full",
    "dataset": "mnist",
    "eps": "2/255",
    "seed": 4,
    "model": "deqlate",
    "method": "crown-ibp",
    "options": {"margin": 0.2, "gain": None},
    "method_options": {"final_beta": 0.5},
    "width": 0.5,
    "train_images": None,
    "validation_images": 11,
    "train.epochs": 11,
    "train.batch_size": 64,
    "train.learning_rate": 1e-3,
    "train.decay_epochs": (7,),
    "train.decay_factor": 0.1,
    "train.ramp_start": 1,
    "train.ramp_epochs": 4,
    "train.ramp_shape": "linear",
    "train.eps": "1/10",
    "train.kappa": 0.2,
    "train.kappa_start": 0.9,
    "train.l1": 1e-6,
    "train.accumulate": 2,
    "train.ema_decay": 0.9,
    "train.recompute_statistics": True,
    "train.clip_norm": 8.0,
    "train.regularisation": 0.0,
    "train.regularise_equilibria": False,
    "train.precision": "float32",
    "train.compile": "never",
    "train.initialisation": "default",
    "train.mean": (0.5,),
    "train.std": (0.25,),
    "evaluation.stages": ("ibp", "crown"),
    "evaluation.test_images": None,
    "evaluation.batch_size": 100,
    "evaluation.attack": "margin",
    "evaluation.attack_steps": 50,
    "evaluation.attack_step": 1.0,
    "evaluation.attack_restarts": 5,
    "evaluation.stage_seconds": 1.5,
    "evaluation.bab_seconds": 1.5,
    "evaluation.bab_branches": 7,
    "evaluation.certificates": True,
    "plugins": {"my_package.nets": "0123456789abcdef"},
    "checkpoint": Checkpoint("net.pt", prefix="net.", mean=[0.5], std=[0.25], sha256="0" * 64),
}
ELSEWHERE = ("checkpoint", "source")
"""Fields of networks trained elsewhere alone."""


def changed(config, name, value):
    """`config` with the field `name`, dotted, set to `value`."""
    section, _, field = name.rpartition(".")
    if section:
        value = dataclasses.replace(getattr(config, section), **{field: value})
    method = {"method": TRAINED_ELSEWHERE} if field in ELSEWHERE else {}
    return dataclasses.replace(config, **{section or field: value}, **method)


def test_the_stages_are_the_bounds_of_the_mathematics():
    assert [stage for stage in STAGES if stage in BOUNDS] == list(BOUNDS)


def test_every_field_is_in_the_list_of_other_values():
    sections = {"train": TrainSettings, "evaluation": EvaluationSettings}
    names = {field.name for field in dataclasses.fields(TrialConfig)} - sections.keys()
    names |= {f"{section}.{field.name}" for section, kind in sections.items() for field in dataclasses.fields(kind)}
    assert set(OTHER) == names - {"source", "own_data"}


@pytest.mark.parametrize("name", OTHER)
def test_every_field_changes_the_key_and_survives_json(name):
    other = changed(GOLDEN, name, OTHER[name])
    assert other != GOLDEN
    assert trial_key(other, FINGERPRINT) != trial_key(GOLDEN, FINGERPRINT)
    written = json.loads(json.dumps(to_dict(other), allow_nan=False))
    assert from_dict(written) == other and to_dict(from_dict(written)) == written


def test_published_numbers_survive_json_and_decide_no_key():
    elsewhere = changed(GOLDEN, "checkpoint", OTHER["checkpoint"])
    source = Source("Someone 2022", "Box", certified_accuracy=86.8)
    published = dataclasses.replace(elsewhere, source=source)
    assert from_dict(json.loads(json.dumps(to_dict(published)))).source == source
    assert published == elsewhere and trial_key(published, FINGERPRINT) == trial_key(elsewhere, FINGERPRINT)
    assert identity(published) == identity(elsewhere) and digest_content(published) == digest_content(elsewhere)
    with pytest.raises(SettingError, match=r"source: .* the network is trained here"):
        dataclasses.replace(GOLDEN, source=source)


def test_the_label_of_a_network_trained_elsewhere_names_its_file_and_no_recipe():
    elsewhere = changed(GOLDEN, "checkpoint", OTHER["checkpoint"])
    other = dataclasses.replace(elsewhere, checkpoint=dataclasses.replace(elsewhere.checkpoint, prefix="other."))
    trained = [GOLDEN, dataclasses.replace(GOLDEN, train=dataclasses.replace(GOLDEN.train, kappa=0.25))]
    names = labels([elsewhere, other, *trained])
    assert len(set(names)) == 4 and all("checkpoint=net.pt@" in name for name in names[:2])
    assert "train." not in names[0] and names[3].endswith(" train.kappa=0.25 seed 3")
    assert labels([elsewhere, GOLDEN])[1] == GOLDEN.label
    assert elsewhere.epochs == 0


def test_the_key_is_golden_and_differs_with_the_data_and_the_recipe_version(monkeypatch):
    assert trial_key(GOLDEN, FINGERPRINT) == "5d25e3b92708d393"
    assert "plugins" not in to_dict(GOLDEN), "keys are older than plugins"
    assert trial_key(GOLDEN, FINGERPRINT[::-1]) != trial_key(GOLDEN, FINGERPRINT)
    monkeypatch.setattr(trial_config, "RECIPE_VERSION", trial_config.RECIPE_VERSION + 1)
    assert trial_key(GOLDEN, FINGERPRINT) != "5d25e3b92708d393"


def test_the_key_does_not_depend_on_the_order_of_options():
    reordered = dataclasses.replace(GOLDEN, options={"gain": None, "margin": 0.1})
    assert trial_key(reordered, FINGERPRINT) == trial_key(GOLDEN, FINGERPRINT)


def test_published_trials_are_read_built_and_found_under_their_keys():
    networks = {}
    rows = pd.concat(map(read_table, PUBLISHED))
    for name, content in rows.loc[~rows["folder"].str.contains("certified"), ["folder", "trial"]].to_numpy():
        read = folder.parse_trial(json.loads(content))
        assert read.key == Path(name).name == trial_key(read.config, read.fingerprint)
        networks[read.config.row] = read.config
    assert {"cnn5", "cnn7", "cnn11", "resnet9", "tied9"} <= {config.model for config in networks.values()}
    for config in networks.values():
        check_buildable(config)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [(None, "eps", ...), ("train", "momentum", 0.9), ("train", "epochs", 0), ("train", "epochs", "10")],
)
def test_a_dictionary_that_is_no_config_is_refused(section, key, value):
    data = to_dict(GOLDEN)
    mapping = data[section] if section else data
    mapping[key] = value
    if value is ...:
        del mapping[key]
    with pytest.raises((SettingError, TypeError)):
        from_dict(data)


def test_labels_name_the_settings_in_which_trials_differ():
    assert GOLDEN.label == "cerdeq ibp gain=None margin=0.1 seed 3"
    assert labels([]) == []
    assert labels([GOLDEN, dataclasses.replace(GOLDEN, seed=4)])[0] == GOLDEN.label
    mixed = dataclasses.replace(GOLDEN, seed=4, train=dataclasses.replace(GOLDEN.train, kappa=0.25))
    assert labels([GOLDEN, mixed]) == [
        "cerdeq ibp gain=None margin=0.1 train.kappa=0 seed 3",
        "cerdeq ibp gain=None margin=0.1 train.kappa=0.25 seed 4",
    ]
    rates = [dataclasses.replace(GOLDEN.train, learning_rate=rate) for rate in (0.001, 0.0010000001)]
    texts = labels([dataclasses.replace(GOLDEN, train=train) for train in rates])
    assert [text.split()[-3] for text in texts] == ["train.learning_rate=0.001", "train.learning_rate=0.0010000001"]
    own = dataclasses.replace(GOLDEN, plugins={"nets": "0" * 16})
    assert labels([GOLDEN, own])[1] == "cerdeq ibp gain=None margin=0.1 plugins=nets@0000000000000000 seed 3"
