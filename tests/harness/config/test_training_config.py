"""A training checks itself, survives JSON, and is named by its key and its label; so does an evaluation."""

import json
from pathlib import Path

import pandas as pd
import pytest

from cerdeq.bounds import BOUNDS
from harness import settings
from harness.common.errors import InputError
from harness.config import training as training_module
from harness.config.buildable import check_buildable
from harness.config.training import PRESENTATION, Training
from harness.pretrained.network_file import TRAINED_ELSEWHERE, NetworkFile, Source
from harness.settings import STAGES, Evaluation, Recipe
from harness.storage.parquet import read_table
from harness.storage.records import parse_evaluation, parse_training

PUBLISHED = sorted((Path(__file__).resolve().parents[3] / "results/published").glob("*/evaluations.parquet"))
FINGERPRINT = "0123456789abcdef"
GOLDEN = Training(
    dataset="cifar10",
    seed=3,
    model="cerdeq",
    method="ibp",
    options={"margin": 0.1, "gain": None},
    width=0.25,
    train_images=1000,
    validation_images=10,
    train=Recipe(epochs=10, decay_epochs=(7, 9), ramp_epochs=5, eps="8/255"),
)
EVALUATION = Evaluation(eps="8/255", test_images=100)
OTHER = {
    "dataset": "mnist",
    "seed": 4,
    "model": "deqlate",
    "method": "crown-ibp",
    "options": {"margin": 0.2, "gain": None},
    "method_options": {"final_beta": 0.5},
    "teacher": Training(dataset="cifar10", model="cnn7", method="pgd", seed=0, train=Recipe(eps="8/255")),
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
    "plugins": {"my_package.nets": "0123456789abcdef"},
    "checkpoint": NetworkFile(file="net.pt", prefix="net.", mean=[0.5], std=[0.25], sha256="0" * 64),
}
OTHER_EVALUATION = {
    "eps": "2/255",
    "split": "validation",
    "stages": ("ibp", "crown"),
    "test_images": None,
    "batch_size": 100,
    "attack": "margin",
    "attack_steps": 50,
    "attack_step": 1.0,
    "attack_restarts": 5,
    "stage_seconds": 1.5,
    "bab_seconds": 1.5,
    "bab_branches": 7,
    "bab_total_seconds": 1.5,
    "certificates": True,
}
ELSEWHERE = ("checkpoint", "source")
"""Fields of networks trained elsewhere alone."""


def changed(training, name, value):
    """`training` with the field `name`, dotted, set to `value`."""
    if name in ELSEWHERE:
        return training.replace(method=TRAINED_ELSEWHERE, train=Recipe(), **{name: value})
    section, _, field = name.rpartition(".")
    return training.replace(**{section or field: training.train.replace(**{field: value}) if section else value})


def test_the_stages_are_the_bounds_of_the_mathematics():
    assert [stage for stage in STAGES if stage in BOUNDS] == list(BOUNDS)


def test_every_field_is_in_the_list_of_other_values():
    names = Training.model_fields.keys() - PRESENTATION - {"train"}
    assert set(OTHER) == names | {f"train.{name}" for name in Recipe.model_fields}
    assert set(OTHER_EVALUATION) == Evaluation.model_fields.keys()


@pytest.mark.parametrize("name", OTHER)
def test_every_field_changes_the_key_and_survives_json(name):
    other = changed(GOLDEN, name, OTHER[name])
    assert other != GOLDEN
    assert other.key(FINGERPRINT) != GOLDEN.key(FINGERPRINT)
    written = json.loads(json.dumps(other.model_dump(mode="json"), allow_nan=False))
    read = Training.model_validate(written)
    assert read == other and read.model_dump() == other.model_dump() and read.model_dump(mode="json") == written


@pytest.mark.parametrize("name", OTHER_EVALUATION)
def test_every_field_of_an_evaluation_changes_its_key_and_survives_json(name):
    other = EVALUATION.replace(**{name: OTHER_EVALUATION[name]})
    assert other != EVALUATION and other.key != EVALUATION.key
    written = json.loads(json.dumps(other.model_dump(mode="json"), allow_nan=False))
    assert Evaluation.model_validate(written) == other and Evaluation.model_validate(written).key == other.key


def test_published_numbers_and_names_survive_json_and_decide_no_key():
    elsewhere = changed(GOLDEN, "checkpoint", OTHER["checkpoint"])
    source = Source(paper="Someone 2022", method="Box", certified_accuracy=86.8)
    published = elsewhere.replace(source=source, named=("width",))
    read = Training.model_validate(json.loads(json.dumps(published.model_dump(mode="json"))))
    assert (read.source, read.named) == (source, ("width",))
    assert published == elsewhere and published.key(FINGERPRINT) == elsewhere.key(FINGERPRINT)
    assert published.identity == elsewhere.identity
    with pytest.raises(InputError, match=r"source: .* the network is trained here"):
        GOLDEN.replace(source=source)


def test_the_key_is_golden_and_differs_with_the_data_and_the_recipe_version(monkeypatch):
    assert GOLDEN.key(FINGERPRINT) == "b7109a06edc5477c"
    assert GOLDEN.replace(options={"gain": None, "margin": 0.1}).key(FINGERPRINT) == "b7109a06edc5477c"
    assert GOLDEN.key(FINGERPRINT[::-1]) != "b7109a06edc5477c"
    monkeypatch.setattr(training_module, "RECIPE_VERSION", training_module.RECIPE_VERSION + 1)
    assert GOLDEN.key(FINGERPRINT) != "b7109a06edc5477c"


def test_the_key_of_an_evaluation_is_golden_and_differs_with_its_version(monkeypatch):
    assert EVALUATION.key == EVALUATION.replace(bab_seconds=60.0).key == "1c4eaabfe2cb55b1"
    monkeypatch.setattr(settings, "EVALUATION_VERSION", settings.EVALUATION_VERSION + 1)
    assert EVALUATION.key != "1c4eaabfe2cb55b1"


def test_a_setting_at_its_default_is_in_no_key():
    """So a new setting changes no key."""
    recipe = {"epochs": 10, "decay_epochs": [7, 9], "ramp_epochs": 5, "eps": "8/255"}
    assert GOLDEN.canonical()["train"] == recipe
    assert not {"plugins", "checkpoint", "source", "named", "teacher"} & GOLDEN.canonical().keys()


def test_published_networks_are_read_built_and_found_under_their_keys():
    networks = {}
    rows = pd.concat(map(read_table, PUBLISHED))
    for name, training, evaluation in rows[["folder", "training", "evaluation"]].to_numpy():
        read, under = parse_training(json.loads(training)), parse_evaluation(json.loads(evaluation))
        assert name == f"networks/{read.config.key(read.fingerprint)}/evaluations/{under.config.key}"
        networks[read.config.row] = read.config, under.config
    assert {"cnn5", "cnn7", "cnn11", "resnet9", "tied9"} <= {config.model for config, _ in networks.values()}
    for config, evaluation in networks.values():
        check_buildable(config, [evaluation])


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (None, "seed", ...),
        ("train", "eps", ...),
        ("train", "momentum", 0.9),
        ("train", "epochs", 0),
        ("train", "epochs", "10"),
    ],
)
def test_a_dictionary_that_is_no_training_is_refused(section, key, value):
    data = GOLDEN.model_dump(mode="json")
    mapping = data[section] if section else data
    mapping[key] = value
    if value is ...:
        del mapping[key]
    with pytest.raises(ValueError, match=key):
        Training.model_validate(data)


def test_a_network_trained_elsewhere_is_refused_without_its_file():
    with pytest.raises(InputError, match="checkpoint: found None, allowed: a file with the weights"):
        GOLDEN.replace(method=TRAINED_ELSEWHERE, train=Recipe())
    with pytest.raises(InputError, match=r"checkpoint: .* allowed: null"):
        GOLDEN.replace(checkpoint=OTHER["checkpoint"])


def test_a_label_shows_what_the_network_s_entry_says():
    assert GOLDEN.label == "cerdeq ibp gain=None margin=0.1 seed 3"
    own = GOLDEN.replace(named=("train.learning_rate", "width", "train.kappa_start"))
    for rate, text in ((0.001, "0.001"), (0.0010000001, "0.0010000001")):
        settings = f"train.learning_rate={text} width=0.25 train.kappa_start=none"
        assert changed(own, "train.learning_rate", rate).row == f"cerdeq ibp gain=None margin=0.1 {settings}"


def test_a_network_is_found_by_its_label_its_key_and_its_recipe():
    label, key, recipe = changed(GOLDEN, "train.kappa", 0.25).names("the key")
    assert (label, key) == (GOLDEN.label, "the key")
    assert recipe.startswith("cerdeq ibp gain=None margin=0.1 width=0.25 train_images=1000 train.epochs=10 ")
    assert " train.kappa=0.25 " in recipe and recipe.endswith(" seed 3") and "evaluation." not in recipe


def test_the_label_of_a_network_trained_elsewhere_names_its_file_and_no_recipe():
    elsewhere = changed(GOLDEN, "checkpoint", OTHER["checkpoint"])
    other = elsewhere.replace(checkpoint=elsewhere.checkpoint.replace(prefix="other."))
    assert elsewhere.label != other.label and "checkpoint=net.pt@" in elsewhere.label
    assert "train." not in elsewhere.names("")[2] and elsewhere.epochs == 0
