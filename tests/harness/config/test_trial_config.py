"""A trial's config checks itself, survives JSON, and is named by its key."""

import dataclasses
import json
import string

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerdeq.bounds import BOUNDS
from harness.config import trial
from harness.config.settings import ATTACKS, BAB, STAGES, EvaluationSettings, TrainSettings
from harness.config.trial import NAME_PATTERN, TrialConfig, from_dict, labels, to_dict, trial_key
from harness.errors import SettingError

FINGERPRINT = "0123456789abcdef"
seeded = hypothesis.settings(derandomize=True, deadline=None, max_examples=50)
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
    "train.eps": "1/10",
    "train.kappa": 0.2,
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
    "evaluation.stages": ("ibp", "crown"),
    "evaluation.test_images": None,
    "evaluation.batch_size": 100,
    "evaluation.attack": "margin",
    "evaluation.attack_steps": 50,
    "evaluation.attack_step": 1.0,
    "evaluation.attack_restarts": 5,
    "evaluation.bab_seconds": 1.5,
    "evaluation.bab_branches": 7,
    "evaluation.certificates": True,
    "plugins": {"my_package.nets": "0123456789abcdef"},
}


def changed(config, name, value):
    """`config` with the field `name`, dotted, set to `value`."""
    section, _, field = name.rpartition(".")
    if section:
        value = dataclasses.replace(getattr(config, section), **{field: value})
    return dataclasses.replace(config, **{section or field: value})


def field_names(kind, prefix=""):
    for field in dataclasses.fields(kind):
        if field.name in ("train", "evaluation") and kind is TrialConfig:
            yield from field_names(
                {"train": TrainSettings, "evaluation": EvaluationSettings}[field.name], field.name + "."
            )
        else:
            yield prefix + field.name


finite = st.floats(min_value=1e-6, max_value=0.999)
options = st.dictionaries(
    st.text(string.ascii_lowercase, min_size=1, max_size=8),
    st.none() | st.booleans() | st.integers(-9, 9) | finite | st.text(max_size=5),
    max_size=4,
)


@st.composite
def eps_texts(draw):
    denominator = draw(st.integers(1, 1000))
    return f"{draw(st.integers(1, denominator))}/{denominator}"


@st.composite
def train_settings(draw):
    epochs = draw(st.integers(1, 300))
    start = draw(st.integers(1, epochs))
    return TrainSettings(
        epochs=epochs,
        batch_size=2 * draw(st.integers(2, 256)),
        eps=draw(st.none() | eps_texts()),
        kappa=draw(finite),
        l1=draw(finite),
        accumulate=draw(st.integers(1, 2)),
        ema_decay=draw(st.none() | finite),
        recompute_statistics=draw(st.booleans()),
        learning_rate=draw(finite),
        decay_epochs=tuple(sorted(draw(st.sets(st.integers(1, epochs), max_size=4)))),
        decay_factor=draw(finite),
        ramp_start=start,
        ramp_epochs=draw(st.integers(0, epochs - start + 1)),
        clip_norm=draw(finite),
        regularisation=draw(finite),
        regularise_equilibria=draw(st.booleans()),
        precision=draw(st.sampled_from(["tf32", "float32", "bf16"])),
        compile=draw(st.sampled_from(["auto", "always", "never"])),
        initialisation=draw(st.sampled_from(["ibp", "default"])),
    )


configs = st.builds(
    TrialConfig,
    sweep=st.from_regex(NAME_PATTERN, fullmatch=True).filter(lambda name: len(name) <= 20),
    profile=st.text(min_size=1, max_size=10),
    dataset=st.sampled_from(["digits", "cifar10"]),
    eps=eps_texts(),
    seed=st.integers(0, 2**31 - 1),
    model=st.text(min_size=1, max_size=5),
    method=st.text(min_size=1, max_size=5),
    options=options,
    method_options=options,
    width=st.floats(0.001, 100),
    train_images=st.none() | st.integers(1024, 10**6),
    validation_images=st.integers(0, 100),
    plugins=st.dictionaries(st.sampled_from(["nets", "my_package.nets"]), st.text("0123456789abcdef"), max_size=2),
    train=train_settings(),
    evaluation=st.builds(
        EvaluationSettings,
        stages=st.sets(st.sampled_from(STAGES[1:])).map(lambda some: tuple(s for s in STAGES if s in {"ibp", *some})),
        test_images=st.none() | st.integers(1, 10**4),
        batch_size=st.integers(1, 1000),
        attack=st.sampled_from(ATTACKS),
        attack_steps=st.integers(1, 100),
        attack_step=st.floats(0.01, 2),
        attack_restarts=st.integers(1, 9),
        bab_seconds=finite,
        bab_branches=st.none() | st.integers(1, 10**6),
        certificates=st.booleans(),
    ),
)


@seeded
@given(configs)
def test_a_config_survives_json(config):
    written = json.loads(json.dumps(to_dict(config), allow_nan=False))
    read = from_dict(written)
    assert read == config
    assert to_dict(read) == written
    assert trial_key(read, FINGERPRINT) == trial_key(config, FINGERPRINT)


@seeded
@given(configs, configs)
def test_keys_are_equal_exactly_where_configs_are(one, other):
    assert (trial_key(one, FINGERPRINT) == trial_key(other, FINGERPRINT)) == (to_dict(one) == to_dict(other))


def test_the_key_does_not_depend_on_the_order_of_options():
    reordered = dataclasses.replace(GOLDEN, options={"gain": None, "margin": 0.1})
    assert trial_key(reordered, FINGERPRINT) == trial_key(GOLDEN, FINGERPRINT)


def test_the_names_of_bounds_are_those_of_the_mathematics():
    assert (*BOUNDS, BAB) == STAGES


def test_every_field_is_in_the_list_of_other_values():
    assert set(OTHER) == set(field_names(TrialConfig))


@pytest.mark.parametrize("name", OTHER)
def test_the_key_differs_with_every_field(name):
    other = changed(GOLDEN, name, OTHER[name])
    assert other != GOLDEN
    assert trial_key(other, FINGERPRINT) != trial_key(GOLDEN, FINGERPRINT)
    assert from_dict(to_dict(other)) == other


def test_the_key_differs_with_the_data_and_the_recipe(monkeypatch):
    before = trial_key(GOLDEN, FINGERPRINT)
    assert trial_key(GOLDEN, FINGERPRINT[::-1]) != before
    monkeypatch.setattr(trial, "RECIPE_VERSION", trial.RECIPE_VERSION + 1)
    assert trial_key(GOLDEN, FINGERPRINT) != before


def test_without_plugins_the_key_is_what_it_was_before_there_were_any():
    assert trial_key(GOLDEN, FINGERPRINT) == "5d25e3b92708d393"
    assert "plugins" not in to_dict(GOLDEN)


def test_the_key_differs_with_the_source_of_a_plugin():
    one, other = (dataclasses.replace(GOLDEN, plugins={"nets": digest}) for digest in ("0" * 16, "1" * 16))
    assert trial_key(one, FINGERPRINT) != trial_key(other, FINGERPRINT)
    assert labels([GOLDEN, one])[1] == "cerdeq ibp gain=None margin=0.1 plugins=nets@0000000000000000 seed 3"


@pytest.mark.parametrize("name", ["my-package", "a..b", "a.b.", "nets:make", "../nets", ""])
def test_a_plugin_that_is_no_module_s_name_is_refused(name):
    with pytest.raises(SettingError, match=r"plugins: found .*names of modules"):
        dataclasses.replace(GOLDEN, plugins={name: "0" * 16})


def test_the_key_is_safe_as_a_file_name():
    assert len(trial_key(GOLDEN, FINGERPRINT)) == 16
    assert set(trial_key(GOLDEN, FINGERPRINT)) <= set("0123456789abcdef")


@pytest.mark.parametrize("broken", ["missing", "unknown", "bad value", "wrong type"])
def test_dictionaries_that_are_no_config_are_refused(broken):
    data = to_dict(GOLDEN)
    match broken:
        case "missing":
            del data["eps"]
        case "unknown":
            data["train"]["momentum"] = 0.9
        case "bad value":
            data["train"]["epochs"] = 0
        case "wrong type":
            data["train"]["epochs"] = "10"
    with pytest.raises((SettingError, TypeError)):
        from_dict(data)


def test_labels_tell_trials_of_a_sweep_apart():
    assert GOLDEN.label == "cerdeq ibp gain=None margin=0.1 seed 3"


def test_labels_name_the_settings_in_which_trials_differ():
    mixed = dataclasses.replace(GOLDEN, seed=4, train=dataclasses.replace(GOLDEN.train, kappa=0.25))
    assert labels([GOLDEN]) == [GOLDEN.label]
    assert labels([GOLDEN, dataclasses.replace(GOLDEN, seed=4)])[0] == GOLDEN.label
    assert labels([GOLDEN, mixed]) == [
        "cerdeq ibp gain=None margin=0.1 train.kappa=0.0 seed 3",
        "cerdeq ibp gain=None margin=0.1 train.kappa=0.25 seed 4",
    ]
    assert labels([]) == []
