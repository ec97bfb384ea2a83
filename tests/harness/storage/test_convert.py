"""`harness.convert`: what the directories of trials of an older version become."""

import json
import os
import shutil
from itertools import count
from pathlib import Path

import pytest

from harness import convert
from harness.command_line import main
from harness.common import names
from harness.storage import folder
from harness.storage.parquet import read_table, write_table

EXAMPLE = Path(__file__).parents[3] / "results/example"
NETWORK = EXAMPLE / "networks/16685912715fc49c"
MAIN, FURTHER = "d1ae262827246267", "35b59961254b4bb3"
PROOFS = (folder.VERDICTS, folder.COUNTEREXAMPLES, folder.CERTIFICATES)


def read(path):
    return json.loads(path.read_text())


def make_old(sweep_dir, name="old", evaluated_by=None, profile="full", further=True, **changes):
    """Make the trial's folder that the example's network was, its config changed. evaluated_by: changed settings."""
    trial_dir = sweep_dir / "trials" / name
    trial_dir.mkdir(parents=True)
    for file in (folder.EPOCHS, folder.WEIGHTS):
        shutil.copy(NETWORK / file, trial_dir)
    record = read(NETWORK / folder.TRAINING)
    config = record["config"] | {"sweep": "s", "profile": profile, "eps": record["config"]["train"]["eps"]} | changes
    config["train"] = config["train"] | {"eps": changes.get("train_eps")}
    folders = {trial_dir: MAIN} | ({trial_dir / "certified/ibp+bab": FURTHER} if further else {})
    for directory, key in folders.items():
        source = NETWORK / folder.EVALUATIONS / key
        directory.mkdir(parents=True, exist_ok=True)
        for file in PROOFS:
            if (source / file).exists():
                shutil.copy(source / file, directory)
        verdicts = read_table(source / folder.VERDICTS).drop(columns=names.TAKEN_FROM)
        write_table(directory / folder.VERDICTS, verdicts)
        settings = read(source / folder.EVALUATION)["config"]
        settings = {name: value for name, value in settings.items() if name not in ("eps", "split")}
        settings["bab_trial_seconds"] = settings.pop("bab_total_seconds")
        settings |= (evaluated_by or {}) if directory == trial_dir else {}
        content = record | {"key": "0123456789abcdef", "config": config | {"evaluation": settings}}
        file = "trial.json" if directory == trial_dir else "certification.json"
        (directory / file).write_text(json.dumps(content))
        result = read(source / folder.RESULT)
        del result["taken_over"]
        (directory / folder.RESULT).write_text(json.dumps(result | {"key": "0123456789abcdef"}))
    return trial_dir


def content_of(sweep_dir):
    """All files of the networks, JSON as values, tables as text."""
    files = [path for path in (sweep_dir / "networks").rglob("*") if path.is_file()]
    readers = {".json": read, ".parquet": lambda path: read_table(path).to_csv()}
    return {str(path.relative_to(sweep_dir)): readers.get(path.suffix, Path.read_bytes)(path) for path in files}


def test_a_trial_becomes_a_network_with_its_evaluations(tmp_path, capsys):
    trial_dir = make_old(tmp_path)
    (trial_dir / "ranges/0").mkdir(parents=True)
    assert main("convert", [str(tmp_path)]) == 0
    assert content_of(tmp_path) == content_of(EXAMPLE)
    assert {path.name for path in tmp_path.iterdir()} >= {"networks", "leaderboard.md"}
    assert not (tmp_path / "trials").exists() and not list(tmp_path.rglob("ranges"))
    assert main("convert", [str(tmp_path)]) == 0
    assert "1 network\n" in capsys.readouterr().out


def test_a_conversion_that_was_stopped_anywhere_continues(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.leaderboard.files.write_leaderboard", lambda _: None)  # it takes seconds
    operations = ((os, "replace"), (Path, "rename"), (Path, "unlink"), (convert.shutil, "rmtree"))

    def stop_after(steps, patch):
        done = count()

        def stopping(function):
            def call(*arguments, **options):
                if next(done) >= steps:
                    raise KeyboardInterrupt
                return function(*arguments, **options)

            return call

        for owner, name in operations:
            patch.setattr(owner, name, stopping(getattr(owner, name)))

    expected = None
    for steps in count():
        sweep_dir = tmp_path / f"{steps}"
        make_old(sweep_dir, "a")
        make_old(sweep_dir, "b", {"test_images": 10}, "full --set evaluation.test_images=10", further=False)
        with monkeypatch.context() as patch:
            stop_after(steps, patch)
            status = main("convert", [str(sweep_dir)])
        assert main("convert", [str(sweep_dir)]) == 0
        found = {path: content for path, content in content_of(sweep_dir).items() if "/." not in path}
        expected = expected or found
        assert found == expected, f"stopped after {steps} steps"
        shutil.rmtree(sweep_dir)
        if status == 0:
            break
    assert steps > 20 and len([path for path in expected if path.endswith(folder.RESULT)]) == 3


def test_trials_of_one_training_become_one_network(tmp_path):
    settings = {"test_images": 10, "bab_trial_seconds": 5.0}
    make_old(tmp_path, "a", settings, 'full --set evaluation.stages=["ibp"] --set train.kappa=0', further=False)
    make_old(tmp_path, "b", settings, "full --set evaluation.test_images=10", further=False)
    make_old(tmp_path, "c", further=False)
    make_old(tmp_path, "d", further=False, eps="1/10", train_eps="3/10")
    assert main("convert", [str(tmp_path)]) == 0
    (network_dir,) = folder.network_folders(tmp_path)
    found = {path.name: folder.read_evaluation(path).config for path in folder.evaluation_folders(network_dir)}
    main_evaluation = folder.read_evaluation(NETWORK / folder.EVALUATIONS / MAIN).config
    limited = main_evaluation.replace(test_images=10, bab_total_seconds=5.0)
    other = main_evaluation.replace(eps="1/10")
    assert network_dir.name == NETWORK.name
    assert found == {each.key: each for each in (main_evaluation, limited, other)}
    assert folder.read_study(network_dir)["full --set train.kappa=0"] == limited.key
    assert folder.read_study(network_dir)["full"] in (MAIN, other.key), "the sweep file's own evaluation is main"


def test_what_cannot_be_converted_is_moved_and_named(tmp_path, capsys):
    make_old(tmp_path, "a", further=False)
    weights = make_old(tmp_path, "b", {"test_images": 10}, further=False) / folder.WEIGHTS
    weights.write_bytes(weights.read_bytes() + b"?")
    old = make_old(tmp_path, "c", further=False) / "trial.json"
    old.write_text(old.read_text().replace('"recipe_version": 7', '"recipe_version": 6'))
    (make_old(tmp_path, "d", further=False) / "trial.json").write_text("{")
    assert main("convert", [str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert {path.name for path in (tmp_path / "not_converted").iterdir()} == {"b", "c", "d"}
    for name, problem in {"b": "weights: found", "c": "recipe_version: found 6", "d": "cannot be read"}.items():
        assert any(f"not_converted/{name}: " in line and problem in line for line in lines)
    assert len(folder.network_folders(tmp_path)) == 1
    assert main("tables", [str(tmp_path), "--status"]) == 0


def test_held_out_images_are_another_split(tmp_path):
    make_old(tmp_path, validation_images=100)
    assert main("convert", [str(tmp_path)]) == 0
    (network_dir,) = folder.network_folders(tmp_path)
    found = [folder.read_evaluation(path).config for path in folder.evaluation_folders(network_dir)]
    assert {(each.split, each.test_images, each.key in folder.read_study(network_dir).values()) for each in found} == {
        ("validation", None, True),  # the trial's own was of all
        ("validation", 1000, False),
    }


def test_unfinished_training_keeps_its_checkpoint(tmp_path):
    trial_dir = make_old(tmp_path, further=False)
    for file in (folder.RESULT, folder.WEIGHTS, *PROOFS):
        (trial_dir / file).unlink(missing_ok=True)
    (trial_dir / folder.CHECKPOINT).write_bytes(b"state")
    assert main("convert", [str(tmp_path)]) == 0
    (network_dir,) = folder.network_folders(tmp_path)
    assert folder.read_trained(network_dir) is None and (network_dir / folder.CHECKPOINT).read_bytes() == b"state"
    assert folder.read_study(network_dir) == {"full": MAIN}


def test_a_network_trained_elsewhere_has_no_recipe(tmp_path):
    file = {"file": "net.pt", "sha256": "0" * 64}
    make_old(tmp_path, further=False, method="trained elsewhere", checkpoint=file, method_options={}, named=None)
    assert main("convert", [str(tmp_path)]) == 0
    (network_dir,) = folder.network_folders(tmp_path)
    assert folder.read_training(network_dir / folder.TRAINING).config.train.eps is None
    assert folder.read_trained(network_dir).environment == {}


@pytest.mark.parametrize("command", ["tables", "recheck", "certify", "publish"])
def test_commands_name_the_conversion(command, tmp_path, capsys):
    make_old(tmp_path, further=False)
    assert main(command, [str(tmp_path)]) == 2
    assert f"trials is older: python -m harness.convert {tmp_path}" in capsys.readouterr().err


def test_a_run_refuses_an_older_directory(refused, tmp_path):
    sweep = Path(__file__).parents[3] / "sweeps/quickstart.yaml"
    make_old(tmp_path / "results/quickstart", further=False)
    assert "is older: python -m harness.convert " in refused(sweep, "--here")


def test_searches_below_are_converted(tmp_path):
    make_old(tmp_path / "search/tpe-1", further=False)
    assert main("convert", [str(tmp_path)]) == 0
    assert len(folder.network_folders(tmp_path / "search/tpe-1")) == 1
