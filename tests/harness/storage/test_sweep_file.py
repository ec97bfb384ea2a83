"""`sweep.yaml` of results: the whole file as it ran, with the keys, the profile and the paths of the original."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from project_sweeps import SWEEPS
from small_sweep import BASE, changed, write

from harness.command_line import main
from harness.config.expansion import expand_file
from harness.config.file import read, read_file
from harness.config.training import FULL_PROFILE
from harness.config.yaml_text import format_yaml, parse_yaml
from harness.storage.files import DamagedFileError
from harness.storage.sweep_file import SWEEP, _with_paths, read_ran, write_sweep_file


class Everything:
    """Holds whatever it is asked for: no network is built."""

    def __contains__(self, _):
        return True


def load(path, profile=None, *assignments):
    return read_file(path, profile, lambda: True, assignments)


def as_it_ran(file, directory):
    """The file that a run of it leaves in a directory, read."""
    directory.mkdir(parents=True, exist_ok=True)
    write_sweep_file(file, directory, ["0"])
    return load(directory / SWEEP)


@pytest.mark.parametrize("path", [path for path in SWEEPS if path.stem != "own-images"], ids=lambda path: path.stem)
def test_each_file_as_it_ran_has_the_trainings_and_evaluations_of_the_original(path, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.config.expansion.read_file", lambda *_: b"")  # checkpoints are not fetched here
    for profile in [FULL_PROFILE, *(read(path)[0].get("profiles") or {})]:
        file = load(path, profile, "seeds=[7, 8]", "train.clip_norm=4", "evaluation.eps=[1/9, 1/99]")
        again = as_it_ran(file, tmp_path / profile)
        assert again.profile == file.profile == f"{profile} --set train.clip_norm=4"
        assert again.sweep.model_dump(exclude={"ran"}) | {"trials": 0} == file.sweep.model_dump(exclude={"ran"}) | {
            "trials": 0, "include": "", "profiles": None,
        }  # fmt: skip
        if "published" in path.stem:
            continue
        studies = [expand_file(each, Everything()) for each in (file, again)]
        keys = [[each.key("data") for each in study.trainings] for study in studies]
        assert keys[0] == keys[1] and studies[0].evaluations == studies[1].evaluations
        assert studies[0].profile == studies[1].profile and studies[0].resources == studies[1].resources
        assert again.sweep.ran.evaluations == [each.key for each in studies[0].evaluations]


def test_a_change_over_the_file_as_it_ran_is_one_over_the_original(tmp_path):
    path = write(tmp_path, changed(("profiles", {"small": {"width": 0.5}})))
    file = as_it_ran(load(path, "small", "train.kappa=0.5", "train.clip_norm=2"), tmp_path / "results/study")
    assert file.profile == "small --set train.clip_norm=2 --set train.kappa=0.5"
    further = load(file.path, None, "train.kappa=0.25", "evaluation.eps=1/8")
    assert further.profile == "small --set train.clip_norm=2 --set train.kappa=0.25"
    assert load(file.path, "small").profile == file.profile, "which is merged already"


def test_another_profile_than_the_one_that_ran_is_refused(refused, tmp_path):
    path = write(tmp_path, changed(("profiles", {"small": {"width": 0.5}})))
    file = as_it_ran(load(path, "small"), tmp_path / "results/study")
    assert "--profile: found 'full', allowed: small" in refused(file.path, "--profile", "full")


PATHS = {
    "own images": ({"dataset": {"folder": "images"}}, "dataset.folder", "../../images"),
    "a class": ({"dataset": {"torchvision": "GTSRB"}}, "dataset.torchvision", "GTSRB"),
    "an absolute path": ({"dataset": {"folder": "/data/images"}}, "dataset.folder", "/data/images"),
    "a checkpoint": ({"trials": [{"checkpoint": "net.pt"}]}, "trials.0.checkpoint", "../../net.pt"),
    "a list of files": ({"trials": [{"checkpoint": {"file": ["a", "b"]}}]}, "trials.0.checkpoint.file.1", "../../b"),
    "a teacher's": (
        {"trials": [{"method_options": {"teacher": {"checkpoint": {"file": "t.pt", "prefix": "model."}}}}]},
        "trials.0.method_options.teacher.checkpoint.file",
        "../../t.pt",
    ),
}


@pytest.mark.parametrize("case", PATHS)
def test_paths_are_relative_to_where_it_lies(case):
    content, key, expected = PATHS[case]
    content = {"dataset": "digits", "trials": []} | content
    before = copy.deepcopy(content)
    found = _with_paths(content, lambda path: path if path.startswith("/") else f"../../{path}")
    for part in key.split("."):
        found = found[int(part) if part.isdigit() else part]
    assert found == expected and content == before


def test_own_images_and_checkpoints_are_those_of_the_original(tmp_path):
    content = changed(("dataset", {"folder": "images"}), ("trials", [{"model": "conv", "checkpoint": "../net.pt"}]))
    (tmp_path / "sweeps").mkdir()
    file = load(write(tmp_path / "sweeps", content))
    again = as_it_ran(file, tmp_path / "results/study")
    for each in (file, again):
        assert each.sweep.dataset.relative_to(each.path.parent).folder == str(tmp_path / "sweeps/images")
        (entry,) = each.sweep.trials
        assert (each.path.parent / entry["checkpoint"]).resolve() == tmp_path / "net.pt"


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0")) | st.from_regex(
    r"([-+.]?[0-9_:e/.]{1,6}|true|no|~|<<|null)", fullmatch=True
)


@settings(max_examples=50)
@given(st.dictionaries(TEXTS, st.recursive(LEAVES | TEXTS, lambda one: st.lists(one) | st.dictionaries(TEXTS, one))))
def test_what_is_written_is_read_as_it_was(content):
    assert parse_yaml(format_yaml(content)) == json.loads(json.dumps(content))


def test_a_file_of_a_user_in_the_results_is_not_written_over(tmp_path, capsys):
    (tmp_path / "study").mkdir()
    path = write(tmp_path / "study", BASE, SWEEP)
    before = path.read_text()
    assert main("run", [str(path), "--here", "--results-dir", str(tmp_path)]) == 2
    assert "allowed: a file of your own elsewhere" in capsys.readouterr().err and path.read_text() == before


@pytest.mark.parametrize("text", ["", "- 1", "name: x", "ran: {profile: 5}", "ran: [", "ran: {profile: x, a: 1}"])
def test_a_damaged_one_is_named(tmp_path, text):
    (tmp_path / SWEEP).write_text(text)
    with pytest.raises(DamagedFileError, match=f"{SWEEP} cannot be read: "):
        read_ran(tmp_path)
    assert read_ran(tmp_path / "none") is None
