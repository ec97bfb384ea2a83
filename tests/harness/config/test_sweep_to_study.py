"""From a good sweep file to its study: every field arrives, in the file's order.

sweep_keys.json says which networks and evaluations the project's own files have under each profile, so that a change of
how they are written leaves those as they are. Where they are meant to change, write it anew by
`PYTHONPATH=tests:tests/harness python tests/harness/config/test_sweep_to_study.py`.
"""

import hashlib
import itertools
import json
from pathlib import Path

import pytest
from project_sweeps import SWEEPS, why_not_loadable
from small_sweep import BASE, changed, entry, load_sweep, trainings_of, write
from test_training_config import ELSEWHERE, OTHER, OTHER_EVALUATION

from harness.common.errors import InputError
from harness.config import expansion
from harness.config.buildable import check_buildable
from harness.config.entry import SweepEntry
from harness.config.file import read
from harness.config.sweep import Sweep
from harness.config.training import FULL_PROFILE, Training
from harness.settings import Evaluation, Recipe

RECORD = Path(__file__).with_name("sweep_keys.json")


def digests(path):
    """How many networks and evaluations a file has under each profile, and a hash of all their keys."""
    found = {}
    for profile in (FULL_PROFILE, *(read(path)[0].get("profiles") or {})):
        study = load_sweep(path, profile, True)
        keys = [*sorted(one.key("data") for one in study.trainings), *(one.key for one in study.evaluations)]
        digest = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]
        found[profile] = [len(study.trainings), len(study.evaluations), digest]
    return found


def test_every_key_says_what_it_means():
    """The documentation is made of it."""
    for schema in (Sweep.model_json_schema(), SweepEntry.model_json_schema()):
        for part in (schema, *schema["$defs"].values()):
            assert [name for name, value in part["properties"].items() if not value.get("description")] == []


def test_trials_are_in_the_file_s_order_seeds_inside(tmp_path):
    entries = [{"model": name, "method": "ibp"} for name in ("deqlate", "cnn7")]
    trials = trainings_of(tmp_path, changed(("seeds", [5, 0, 3]), ("trials", entries)))
    assert [(t.model, t.seed) for t in trials] == list(itertools.product(("deqlate", "cnn7"), (5, 0, 3)))


def test_every_field_reaches_the_study(tmp_path):
    """`OTHER` has a value for every field that is not its default; these fit together."""
    values = OTHER | {
        "options": {"margin": 0.2, "gain": None, "early_iterations": 2, "equilibria": 2, "groups": 4, "norm": False},
        "train_images": 77,
        "train.regularisation": 0.25,
    }
    values["options"]["parametrisation"] = "orthogonal"
    own = {
        name: value
        for name, value in values.items()
        if "." not in name and name not in ("plugins", "teacher", *ELSEWHERE)
    }
    train = {name.removeprefix("train."): value for name, value in values.items() if name.startswith("train.")}
    evaluation = OTHER_EVALUATION | {"stages": ("ibp", "crown", "bab")}
    entry = {key: own[key] for key in ("model", "method", "options", "method_options")}
    file_keys = ("dataset", "width", "train_images", "validation_images")
    content = {key: own[key] for key in file_keys} | {"name": "other", "seeds": [own["seed"]], "trials": [entry]}
    content |= {"eps": "1/255", "train": train, "resources": {"cpu": 3, "gpu": 0.25}, "profiles": {"mine": {}}}
    content["evaluation"] = {key: value for key, value in evaluation.items() if key != "split"}
    study = load_sweep(write(tmp_path, json.dumps(content)), "mine", True)
    assert study.trainings == [Training(**own | {"train": Recipe(**train)})]
    assert study.evaluations == [Evaluation(**evaluation)]
    assert (study.name, study.profile, study.dataset, str(study.eps)) == ("other", "mine", "mnist", "1/255")
    assert (study.resources.cpu, study.resources.gpu) == (3, 0.25)


def test_what_a_file_leaves_out_is_the_default(tmp_path):
    study = load_sweep(write(tmp_path, changed(remove=["train"])), "full", True)
    config = study.trainings[0]
    assert (config.train, study.evaluations) == (Recipe(eps="1/16"), [Evaluation(eps="1/16")])
    assert (config.width, config.train_images, config.validation_images, config.options) == (1.0, None, 0, {})


def test_an_entry_s_width_and_recipe_override_the_sweep_s_and_stand_in_its_label(tmp_path):
    recipe = {"clip_norm": None, "regularisation": 0, "decay_epochs": [], "batch_size": 64}
    content = changed(("width", 0.5), ("trials.1.width", 0.25), ("trials.1.train", recipe), ("seeds", [0]))
    plain, other = trainings_of(tmp_path, content)
    assert (plain.width, other.width) == (0.5, 0.25)
    assert other.train == plain.train.replace(clip_norm=None, regularisation=0.0, decay_epochs=())
    settings = "width=0.25 train.clip_norm=none train.regularisation=0 train.decay_epochs=[]"
    assert (plain.label, other.label) == ("cnn5 ibp seed 0", f"cerdeq ibp {settings} seed 0")


def test_a_label_of_an_entry_names_its_row_and_is_in_no_key(tmp_path):
    labelled = changed(("trials.1.label", "CerDEQ, ours"), ("seeds", [0]))
    plain, ours = trainings_of(tmp_path, changed(("seeds", [0]))), trainings_of(tmp_path, labelled)
    assert [training.entry_label for training in ours] == ["", "CerDEQ, ours"]
    assert [training.key("data") for training in ours] == [training.key("data") for training in plain]
    each = changed(
        ("trials.1", {"model": ["cnn7", "cnn11"], "method": "ibp", "label": ["a", "b"], "zip": ["model", "label"]})
    )
    assert {(t.model, t.entry_label) for t in trainings_of(tmp_path, each)} >= {("cnn7", "a"), ("cnn11", "b")}
    for wrong in ("x" * 81, "two\nlines", 3):
        with pytest.raises(InputError, match=r"trials\.1\.label: "):
            trainings_of(tmp_path, changed(("trials.1.label", wrong)))


SAME = {  # entries that are the same network as one of BASE's
    "defaults": {"model": "cerdeq", "method": "ibp", "options": {"margin": 0.3, "parametrisation": "perron"}},
    "an integer for a number": {"model": "cnn5", "method": "ibp", "width": 1, "options": {}},
    "the sweep's recipe": {"model": "cnn5", "method": "ibp", "train": {"epochs": 4, "clip_norm": 10, "eps": 0.0625}},
}


@pytest.mark.parametrize("case", SAME)
def test_another_spelling_is_the_same_network_and_refused_beside_it(tmp_path, case):
    (training,) = trainings_of(tmp_path, changed(("trials", [SAME[case]]), ("seeds", [0])))
    assert training in trainings_of(tmp_path, BASE)
    with pytest.raises(InputError, match=r"trials\.2\.model: .* an entry that differs from trials\.[01]"):
        trainings_of(tmp_path, changed(("trials", [*BASE["trials"], SAME[case]])))


def test_options_of_methods_are_part_of_a_training(tmp_path):
    options = [{}, {"loss_fusion": False}, {"final_beta": 0.5}]
    entries = [{"model": "cnn5", "method": "crown-ibp", "method_options": own} for own in options]
    trials = trainings_of(tmp_path, changed(("trials", entries), ("seeds", [0])))
    assert [trial.method_options for trial in trials] == options
    assert len({trial.key("data") for trial in trials}) == 3
    assert trials[1].label == "cnn5 crown-ibp loss_fusion=False seed 0"


@pytest.fixture(scope="module")
def networks():
    """The networks that were built, by what decides whether they can be."""
    return {}


@pytest.fixture
def _build_each_network_once(monkeypatch, networks):
    """Files and profiles share networks."""

    def check(training, evaluations):
        key = training.model, training.dataset, str(training.options), training.method, str(training.method_options)
        if key not in networks:
            networks[key] = check_buildable(training, evaluations)
        return networks[key]

    monkeypatch.setattr(expansion, "check_buildable", check)


@pytest.mark.usefixtures("_build_each_network_once")
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_the_project_s_own_sweeps_load_under_each_profile(path):
    if reason := why_not_loadable(path):
        pytest.skip(reason)
    assert digests(path) == json.loads(RECORD.read_text())[path.stem], __doc__


if __name__ == "__main__":
    before = json.loads(RECORD.read_text())
    made = {path.stem: before[path.stem] if why_not_loadable(path) else digests(path) for path in SWEEPS}
    RECORD.write_text(json.dumps(made, indent=1) + "\n")


@pytest.mark.parametrize(
    ("train", "decays", "ramp"),
    [
        ({"epochs": 1}, (), 0),
        ({"epochs": 2}, (1,), 1),
        ({"epochs": 16}, (12, 14), 8),
        ({"epochs": 16, "decay_epochs": [15]}, (15,), 8),
        ({"epochs": 16, "ramp_start": 12}, (12, 14), 5),
        ({"epochs": 150}, (120, 140), 80),
        ({}, (120, 140), 80),
    ],
)
def test_decays_and_ramp_that_a_file_does_not_give_fit_into_its_epochs(tmp_path, train, decays, ramp):
    settings = trainings_of(tmp_path, changed(("train", train)))[0].train
    assert (settings.decay_epochs, settings.ramp_epochs) == (decays, ramp)


@pytest.mark.parametrize(
    ("train", "own", "decays", "ramp"),
    [
        ({"epochs": 10}, {"epochs": 160}, (120, 140), 80),
        ({}, {"epochs": 10}, (7, 8), 5),
        ({"epochs": 10}, {"learning_rate": 1e-3}, (7, 8), 5),
        ({"epochs": 10, "decay_epochs": [9]}, {"epochs": 20}, (9,), 10),
        ({"epochs": 10}, {"epochs": 20, "ramp_epochs": 3}, (15, 17), 3),
    ],
)
def test_decays_and_ramp_that_nobody_gives_fit_into_the_epochs_of_an_entry(tmp_path, train, own, decays, ramp):
    (training, _) = trainings_of(tmp_path, changed(("train", train), ("trials", [entry(train=own)])))
    assert (training.train.decay_epochs, training.train.ramp_epochs) == (decays, ramp)


def test_a_ramp_that_ends_with_the_last_epoch_is_a_warning(tmp_path):
    short = changed(("train", {"epochs": 2}), ("trials.1.train", {"ramp_epochs": 0, "ramp_start": 1}))
    (warning,) = load_sweep(write(tmp_path, short), "full", True).warnings
    assert warning == "the ramp ends with the last epoch, so that no epoch trains at the full eps: trials.0"


UNUSED = {  # changes of BASE, and the setting without effect
    "of an entry": ([("trials", [entry("pgd", train={"regularisation": 0.1})])], "0.train.regularisation ('pgd'"),
    "of a method": (
        [("trials", [entry("sabr", method_options={"subselection": 1.0, "attack_steps": 3})])],
        "trials.0.method_options.attack_steps ('sabr': with subselection 1 the box is the whole ball",
    ),
    "of a network": (
        [("trials", [entry("plain", "cerdeq", options={"warm_start": True})])],
        "trials.0.options.warm_start ('plain' computes no bounds)",
    ),
    "of one of several evaluations": (
        [("evaluation", [{"stages": ["ibp", "bab"]}, {}]), ("evaluation.1.bab_seconds", 5)],
        "evaluation.1.bab_seconds (stages has none of bab)",
    ),
    "of all entries": ([("train.kappa", 0.5), ("trials", [entry("plain")])], "train.kappa ('plain': "),
    "of held-out images": (
        [("validation_images", 50), ("evaluation.test_images", 50)], "evaluation.test_images (validation_images are"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSED)
def test_settings_without_effect_are_one_warning(tmp_path, case):
    changes, setting = UNUSED[case]
    (warning,) = load_sweep(write(tmp_path, changed(*changes)), "full", True).warnings
    assert warning.startswith("settings without effect: ") and setting in warning


def test_a_setting_that_a_network_uses_or_that_is_null_or_zero_is_no_warning(tmp_path):
    less = {"stages": ["ibp"], "bab_seconds": None, "certificates": False, "test_images": None}
    for changes in (
        [("train.regularisation", 0.1), ("trials", [*BASE["trials"], entry("plain")])],
        [("evaluation", less), ("validation_images", 50)],
        [("evaluation", {"stages": ["ibp", "alpha-crown"], "certificates": True, "bab_seconds": 5, "bab_branches": 9})],
        [("trials", [entry(), entry("plain", train={"ramp_epochs": 0})])],
    ):
        assert load_sweep(write(tmp_path, changed(*changes)), "full", True).warnings == ()
