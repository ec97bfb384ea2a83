"""The MLflow mirror: one run a trial, nothing missing and nothing doubled, whatever happened in between."""

import json
from collections import Counter
from pathlib import Path

import pytest
from mlflow.entities import ViewType
from mlflow_folders import (
    FINAL,
    FINGERPRINT,
    artifacts,
    assert_complete,
    assert_networks,
    finish,
    history,
    make_folder,
    only_run,
    train,
)

from harness.config.trial import RECIPE_VERSION
from harness.storage import files, folder
from harness.tracking.store import LARGEST_BATCH, Tracker


class Watched:
    """A client that counts its calls and dies before call number `fatal`, as if the driver were killed."""

    def __init__(self, client, fatal=None):
        self.client, self.fatal, self.calls, self.batches = client, fatal, Counter(), []

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls[name] += 1
            if self.calls.total() == self.fatal:
                raise KeyboardInterrupt
            if name == "log_batch":
                self.batches.append(len(args[1]) if len(args) > 1 else 0)
            return getattr(self.client, name)(*args, **kwargs)

        return call


def watch(tracker, fatal=None):
    return Tracker(tracker.uri, tracker.experiment_id, Watched(tracker.client, fatal))


def test_a_run_follows_its_trial_from_start_to_end(tracker, tmp_path):
    place = make_folder(tmp_path)
    tracker.sync(place)
    assert only_run(tracker).info.status == "RUNNING"
    assert artifacts(tracker) == {folder.TRIAL}

    train(place, 1, 2)
    tracker.sync(place)
    tracker.sync(place)
    assert history(tracker, "train/loss") == [(1, 1.0), (2, 0.5)]

    train(place, 3, 4)
    finish(place)
    tracker.sync(place)
    tracker.sync(place)
    assert_complete(tracker)


def test_a_run_has_the_name_it_was_given_first(tracker, tmp_path):
    place = make_folder(tmp_path)
    tracker.sync(place, "deqlate by a name of its own")
    tracker.sync(place)
    assert only_run(tracker).info.run_name == "deqlate by a name of its own seed 0"


def test_a_finished_run_moves_to_the_row_that_it_is_in_now(tracker, tmp_path):
    """Rows are told apart by more settings once the sweep has more of them."""
    finish(place := make_folder(tmp_path))
    for row in ("deqlate ibp", "deqlate ibp width=0.5"):
        tracker.sync(place, row)
        assert only_run(tracker).data.tags["row"] == row
    assert_networks(tracker, 1)


def test_a_run_s_note_says_what_came_of_it_and_how_to_do_it_again(tracker, tmp_path):
    place = make_folder(tmp_path)
    files.write_json(place / folder.FAILURE, {"error": "loss is | not finite"})
    tracker.sync(place)
    note = only_run(tracker).data.tags["mlflow.note.content"]
    assert "Failed: loss is \\| not finite" in note
    assert "certified error" not in note

    (place / folder.FAILURE).unlink()
    finish(place, {**FINAL, "attack_error": None})
    tracker.sync(place)
    run = only_run(tracker)
    note = run.data.tags["mlflow.note.content"]
    for part in (
        "**deqlate ibp margin=0.1 parametrisation=perron**, seed 0: digits, l-inf eps 8/255",
        "ibp > crown-ibp > alpha-crown, all test images",
        "| 33.33 % | not finite | 25.00 % |",
        f"MLFLOW_TRACKING_URI={tracker.uri} uv run mlflow artifacts download -r {run.info.run_id} -a trial.json -d .",
        "uv run python -m harness.trial trial.json --results-dir again",
        "- Warning: W is at its bound",
    ):
        assert part in note
    assert "Failed" not in note


def test_a_run_has_the_trial_s_tags_parameters_data_set_and_artifacts(tracker, tmp_path):
    place = make_folder(tmp_path)
    finish(place, {**FINAL, "bound_width": None})
    tracker.sync(place)
    run = only_run(tracker)
    identity = {"sweep": "study", "model": "deqlate", "method": "ibp", "seed": "0", "profile": "cpu"}
    assert identity.items() <= run.data.tags.items()
    assert run.data.tags["trial"] == place.name
    assert run.data.tags["environment.device"] == "cpu"
    assert run.data.tags["warnings"] == "W is at its bound\nfewer images than published"
    assert run.data.params.items() >= {
        "recipe_version": str(RECIPE_VERSION),
        "fingerprint": FINGERPRINT,
        "eps": "8/255",
        "options.margin": "0.1",
        "train.decay_epochs": "[2]",
        "train_images": "null",
    }.items()  # fmt: skip
    assert run.data.metrics == FINAL
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("digits", FINGERPRINT[:36])
    assert json.loads(entry.dataset.profile)["classes"] == 10
    assert {tag.key: tag.value for tag in entry.tags} == {"mlflow.data.context": "training, evaluation"}
    content = tracker.client.download_artifacts(run.info.run_id, folder.TRIAL, str(tmp_path))
    assert json.loads(Path(content).read_text())["key"] == place.name


def test_a_finished_trial_costs_one_search(tracker, tmp_path):
    place = make_folder(tmp_path)
    train(place, 1, 4)
    finish(place)
    tracker.sync(place)
    watched = watch(tracker)
    watched.sync(place)
    assert watched.client.calls == {"search_runs": 1}


def test_a_failed_trial_is_tried_again(tracker, tmp_path):
    place = make_folder(tmp_path)
    train(place, 1, 2)
    files.write_json(place / folder.FAILURE, {"error": "loss is not finite " * 1000, "epoch": 3})
    tracker.sync(place)
    tracker.sync(place)
    run = only_run(tracker)
    assert run.info.status == "FAILED"
    assert run.data.tags["error"].startswith("loss is not finite")

    (place / folder.FAILURE).unlink()
    train(place, 2, 3, loss=1.0)
    tracker.sync(place)
    run = only_run(tracker)
    assert run.info.status == "RUNNING"
    assert "error" not in run.data.tags

    train(place, 4, 4)
    finish(place)
    tracker.sync(place)
    assert_complete(tracker)


def test_an_epoch_run_again_keeps_its_first_point(tracker, tmp_path):
    place = make_folder(tmp_path)
    train(place, 1, 3)
    tracker.sync(place)
    train(place, 2, 2, loss=7.0)
    tracker.sync(place)
    train(place, 3, 4, loss=7.0)
    tracker.sync(place)
    assert history(tracker, "train/loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 7 / 4)]


def test_a_driver_killed_before_any_call_leaves_nothing_missing_or_doubled(opened_store, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.tracking.store.LARGEST_BATCH", 4)  # two epochs a batch
    place = make_folder(tmp_path)
    train(place, 1, 4)
    finish(place)
    whole = watch(Tracker.open("not killed", opened_store))
    whole.sync(place)
    assert whole.client.batches == [0, 4, 4, len(FINAL)]
    calls = whole.client.calls.total()
    assert calls > 10
    for fatal in range(1, calls + 1):
        tracker = Tracker.open(f"killed before call {fatal}", opened_store)
        with pytest.raises(KeyboardInterrupt):
            watch(tracker, fatal).sync(place)
        tracker.sync(place)
        assert_complete(tracker)


def test_many_metrics_go_in_large_batches(tracker, tmp_path):
    place = make_folder(tmp_path, epochs=60)
    widths = [f"train/bound_width/{layer}" for layer in range(49)]
    rows = [{"epoch": epoch, "train/loss": 0.5, **dict.fromkeys(widths, float(epoch))} for epoch in range(1, 61)]
    (place / folder.EPOCHS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    watched = watch(tracker)
    watched.sync(place)
    assert [size for size in watched.client.batches if size] == [1000, 1000, 1000]
    assert max(watched.client.batches) <= LARGEST_BATCH
    assert history(tracker, widths[-1]) == [(epoch, epoch) for epoch in range(1, 61)]


def test_the_untrained_network_is_step_0(tracker, tmp_path):
    """Whether it is logged alone, or with epochs that follow."""
    place = make_folder(tmp_path)
    initial = {"epoch": 0, "train/eps": 0.0, "train/bound_width": 7.0, "train/bound_width_relative": None}
    folder.write_epoch(place, initial)
    for _ in range(2):
        tracker.sync(place)
        assert history(tracker, "train/bound_width") == [(0, 7.0)]
    train(place, 1, 4)
    finish(place)
    tracker.sync(place)
    assert history(tracker, "train/bound_width") == [(0, 7.0)]
    assert history(tracker, "train/eps") == [(epoch, 0.1 * epoch) for epoch in range(5)]
    assert history(tracker, "train/loss") == [(epoch, 1.0 / epoch) for epoch in range(1, 5)]


def test_a_new_result_replaces_the_old_one(tracker, tmp_path):
    place = make_folder(tmp_path)
    finish(place)
    tracker.sync(place)
    finish(place, {**FINAL, "certified_error": 40.0})
    tracker.sync(place)
    assert only_run(tracker).data.metrics == {**FINAL, "certified_error": 40.0}
    assert history(tracker, "standard_error") == [(0, 25.0)]
    assert_networks(tracker, 1)


def test_each_trial_has_a_run_of_its_own(tracker, tmp_path):
    places = [make_folder(tmp_path, seed) for seed in range(3)]
    for place in places + places:
        tracker.sync(place)
    runs = tracker.client.search_runs([tracker.experiment_id])
    assert sorted(run.data.tags["trial"] for run in runs) == sorted(place.name for place in places)
    assert not any("mlflow.parentRunId" in run.data.tags for run in runs)


def test_a_deleted_run_is_made_anew(tracker, tmp_path):
    place = make_folder(tmp_path)
    train(place, 1, 4)
    finish(place)
    tracker.sync(place)
    tracker.client.delete_run(only_run(tracker).info.run_id)
    tracker.sync(place)
    assert_complete(tracker)
    assert len(tracker.client.search_runs([tracker.experiment_id], run_view_type=ViewType.ALL)) == 2


def test_a_deleted_experiment_is_restored(tracker, tmp_path):
    place = make_folder(tmp_path)
    tracker.sync(place)
    name = tracker.client.get_experiment(tracker.experiment_id).name
    tracker.client.delete_experiment(tracker.experiment_id)
    again = Tracker.open(name, tracker.uri)
    again.sync(place)
    assert again.experiment_id == tracker.experiment_id
    assert only_run(again).data.tags["trial"] == place.name


def test_tables_go_to_every_run_and_replace_older_ones(tracker, tmp_path):
    tracker.sync_tables(tmp_path)
    for seed in range(2):
        tracker.sync(make_folder(tmp_path, seed))
    for text in ("old", "new"):
        for suffix in ("csv", "md"):
            (tmp_path / f"leaderboard.{suffix}").write_text(text)
        tracker.sync_tables(tmp_path)
    watched = watch(tracker)
    watched.sync_tables(tmp_path)
    assert watched.client.calls == {"search_runs": 1}
    for run in tracker.client.search_runs([tracker.experiment_id]):
        table = tracker.client.download_artifacts(run.info.run_id, "tables/leaderboard.md", str(tmp_path))
        assert Path(table).read_text() == "new"
        assert {f.path for f in tracker.client.list_artifacts(run.info.run_id, "tables")} == {
            "tables/leaderboard.csv",
            "tables/leaderboard.md",
        }
