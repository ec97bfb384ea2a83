"""A trial checks itself, survives JSON, and is named by its key and its label."""

import json
from pathlib import Path

import pandas as pd
import pytest

from cerdeq.bounds import BOUNDS
from harness.common.errors import InputError
from harness.config import trial as trial_module
from harness.config.buildable import check_buildable
from harness.config.training import NO_NUMBER, Trial
from harness.pretrained.network_file import TRAINED_ELSEWHERE, NetworkFile, Source
from harness.settings import STAGES, Evaluation, Recipe
from harness.storage import folder
from harness.storage.parquet import read_table

PUBLISHED = sorted((Path(__file__).resolve().parents[3] / "results/published").glob("*/trials.parquet"))
FINGERPRINT = "0123456789abcdef"
GOLDEN = Trial(
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
    train=Recipe(epochs=10, decay_epochs=(7, 9), ramp_epochs=5),
    evaluation=Evaluation(test_images=100),
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
    "evaluation.bab_trial_seconds": 1.5,
    "evaluation.certificates": True,
    "plugins": {"my_package.nets": "0123456789abcdef"},
    "checkpoint": NetworkFile(file="net.pt", prefix="net.", mean=[0.5], std=[0.25], sha256="0" * 64),
}
ELSEWHERE = ("checkpoint", "source")
"""Fields of networks trained elsewhere alone."""


def changed(trial, name, value):
    """`trial` with the field `name`, dotted, set to `value`."""
    section, _, field = name.rpartition(".")
    if section:
        value = getattr(trial, section).replace(**{field: value})
    method = {"method": TRAINED_ELSEWHERE} if field in ELSEWHERE else {}
    return trial.replace(**{section or field: value}, **method)


def test_the_stages_are_the_bounds_of_the_mathematics():
    assert [stage for stage in STAGES if stage in BOUNDS] == list(BOUNDS)


def test_every_field_is_in_the_list_of_other_values():
    names = Trial.model_fields.keys() - NO_NUMBER - {"train", "evaluation"}
    for section, kind in {"train": Recipe, "evaluation": Evaluation}.items():
        names |= {f"{section}.{name}" for name in kind.model_fields}
    assert set(OTHER) == names


@pytest.mark.parametrize("name", OTHER)
def test_every_field_changes_the_key_and_survives_json(name):
    other = changed(GOLDEN, name, OTHER[name])
    assert other != GOLDEN
    assert other.key(FINGERPRINT) != GOLDEN.key(FINGERPRINT)
    written = json.loads(json.dumps(other.model_dump(mode="json"), allow_nan=False))
    read = Trial.model_validate(written)
    assert read == other and read.model_dump() == other.model_dump() and read.model_dump(mode="json") == written


def test_published_numbers_and_names_survive_json_and_decide_no_key():
    elsewhere = changed(GOLDEN, "checkpoint", OTHER["checkpoint"])
    source = Source(paper="Someone 2022", method="Box", certified_accuracy=86.8)
    published = elsewhere.replace(source=source, named=("width",))
    read = Trial.model_validate(json.loads(json.dumps(published.model_dump(mode="json"))))
    assert (read.source, read.named) == (source, ("width",))
    assert published == elsewhere and published.key(FINGERPRINT) == elsewhere.key(FINGERPRINT)
    assert published.identity == elsewhere.identity
    with pytest.raises(InputError, match=r"source: .* the network is trained here"):
        GOLDEN.replace(source=source)


def test_the_key_is_golden_and_differs_with_the_data_and_the_recipe_version(monkeypatch):
    assert GOLDEN.key(FINGERPRINT) == "5d25e3b92708d393"
    assert GOLDEN.replace(options={"gain": None, "margin": 0.1}).key(FINGERPRINT) == "5d25e3b92708d393"
    assert GOLDEN.key(FINGERPRINT[::-1]) != "5d25e3b92708d393"
    monkeypatch.setattr(trial_module, "RECIPE_VERSION", trial_module.RECIPE_VERSION + 1)
    assert GOLDEN.key(FINGERPRINT) != "5d25e3b92708d393"


def test_a_setting_at_its_default_is_in_no_key():
    """So a new setting changes no key."""
    assert GOLDEN.canonical()["train"] == {"epochs": 10, "decay_epochs": [7, 9], "ramp_epochs": 5}
    assert not {"plugins", "checkpoint", "source", "named"} & GOLDEN.canonical().keys()


def test_published_trials_are_read_built_and_found_under_their_keys():
    networks = {}
    rows = pd.concat(map(read_table, PUBLISHED))
    for name, content in rows.loc[~rows["folder"].str.contains("certified"), ["folder", "trial"]].to_numpy():
        read = folder.parse_trial(json.loads(content))
        assert read.key == Path(name).name == read.config.key(read.fingerprint)
        networks[read.config.row] = read.config
    assert {"cnn5", "cnn7", "cnn11", "resnet9", "tied9"} <= {config.model for config in networks.values()}
    for config in networks.values():
        check_buildable(config)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [(None, "eps", ...), ("train", "momentum", 0.9), ("train", "epochs", 0), ("train", "epochs", "10")],
)
def test_a_dictionary_that_is_no_trial_is_refused(section, key, value):
    data = GOLDEN.model_dump(mode="json")
    mapping = data[section] if section else data
    mapping[key] = value
    if value is ...:
        del mapping[key]
    with pytest.raises(ValueError, match=key):
        Trial.model_validate(data)


def test_a_network_trained_elsewhere_is_refused_without_its_file():
    with pytest.raises(InputError, match="checkpoint: found None, allowed: a file with the weights"):
        GOLDEN.replace(method=TRAINED_ELSEWHERE)
    with pytest.raises(InputError, match=r"checkpoint: .* allowed: null"):
        GOLDEN.replace(checkpoint=OTHER["checkpoint"])


def test_a_label_shows_what_the_trial_s_entry_says():
    assert GOLDEN.label == "cerdeq ibp gain=None margin=0.1 seed 3"
    own = GOLDEN.replace(named=("train.learning_rate", "width", "train.kappa_start"))
    for rate, text in ((0.001, "0.001"), (0.0010000001, "0.0010000001")):
        settings = f"train.learning_rate={text} width=0.25 train.kappa_start=none"
        assert changed(own, "train.learning_rate", rate).row == f"cerdeq ibp gain=None margin=0.1 {settings}"


def test_a_trial_is_found_by_its_label_its_key_and_its_recipe():
    label, key, recipe = changed(GOLDEN, "train.kappa", 0.25).names("the key")
    assert (label, key) == (GOLDEN.label, "the key")
    assert recipe.startswith("cerdeq ibp gain=None margin=0.1 width=0.25 train_images=1000 train.epochs=10 ")
    assert " train.kappa=0.25 " in recipe and recipe.endswith(" seed 3") and "evaluation." not in recipe


def test_the_label_of_a_network_trained_elsewhere_names_its_file_and_no_recipe():
    elsewhere = changed(GOLDEN, "checkpoint", OTHER["checkpoint"])
    other = elsewhere.replace(checkpoint=elsewhere.checkpoint.replace(prefix="other."))
    assert elsewhere.label != other.label and "checkpoint=net.pt@" in elsewhere.label
    assert "train." not in elsewhere.names("")[2] and elsewhere.epochs == 0
