"""A small finished sweep, and what a liar changes in a copy of it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from harness.tune.certify_plan import Certification
from harness.tune.certify_trials import certify
from rich.console import Console
from safetensors.torch import load_file, save_file

from baselines import build
from harness.common import names
from harness.config.training import Trial
from harness.data import load
from harness.evaluation.metrics import final_metrics, finite_or_none
from harness.evaluation.network import load_network, prepare_network
from harness.evaluation.ranges import evaluate_range, finish_evaluation
from harness.evaluation.verdicts import EvaluationResult
from harness.leaderboard.files import write_leaderboard
from harness.storage import folder, ranges

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKPOINT = {"file": "net.pt", "sha256": "a" * 64}
STAGES = {"cnn5": ("ibp", "crown-ibp", "alpha-crown"), "cerdeq": ("ibp", "crown-ibp")}
IMAGES = 24  # the first ones, among them every kind of verdict
CERTIFIED_IMAGES = 22


@dataclass(frozen=True)
class Sweep:
    """A sweep's directory: a CNN-5 with certificates, its certification by branch and bound, and a CerDEQ."""

    root: Path
    keys: dict[str, str]

    @property
    def cnn5(self) -> Path:
        return folder.trial_dir(self.root, self.keys["cnn5"])

    @property
    def cerdeq(self) -> Path:
        return folder.trial_dir(self.root, self.keys["cerdeq"])

    @property
    def certified(self) -> Path:
        return next((self.cnn5 / "certified").iterdir())

    def copy(self, to: Path) -> "Sweep":
        return Sweep(Path(shutil.copytree(self.root, to)), self.keys)


def make_sweep(root: Path) -> Sweep:
    """Evaluate the golden networks on a few images, as trials do, and certify the CNN further."""
    sweep = Sweep(root, {name: _make_trial(root, name) for name in STAGES})
    _certify(sweep.cnn5)
    write_leaderboard(root, latex=True)
    return sweep


def _make_trial(root: Path, name: str) -> str:
    data, config = load("digits"), folder.read_trial(GOLDEN / name / folder.TRIAL).config
    attack = {"attack": "margin", "attack_steps": 10, "attack_step": 1.0, "attack_restarts": 1}
    settings = config.evaluation.replace(stages=STAGES[name], test_images=IMAGES, certificates=True, **attack)
    trial = folder.make_trial(config.replace(sweep="study", evaluation=settings), data.fingerprint)
    trial_dir = folder.trial_dir(root, trial.key)
    trial_dir.mkdir(parents=True)
    folder.take_over(trial_dir, trial)
    shutil.copy(GOLDEN / name / folder.WEIGHTS, trial_dir)
    network = prepare_network(load_network(trial.config, trial_dir / folder.WEIGHTS), STAGES[name])
    images, ranges_dir = range(IMAGES), ranges.ranges_dir(trial_dir, "0")
    ranges.begin_ranges(ranges_dir)
    evaluate_range(ranges_dir, images, network, data.test_images(IMAGES), trial.config)
    untrained = build(config.model, config.data_info, config.width, **config.options)
    further = {names.PARAMETERS: sum(parameter.numel() for parameter in untrained.parameters()), names.TRAIN_SECONDS: 1}
    metrics, _ = finish_evaluation(trial_dir, ranges_dir, [images], trial.config, further)
    ranges.remove_ranges(trial_dir)
    folder.write_result(trial_dir, folder.TrialResult(trial.key, metrics, {}, data.summary(), []))
    return trial.key


def _certify(trial_dir: Path) -> None:
    trial, stages = folder.read_trial(trial_dir / folder.TRIAL), ("ibp", "crown-ibp", "bab")
    limits = {"bab_seconds": None, "bab_branches": 60}
    settings = trial.config.evaluation.replace(stages=stages, test_images=CERTIFIED_IMAGES, **limits)
    trial = replace(trial, config=trial.config.replace(evaluation=settings))
    assert certify([Certification(trial_dir, trial, load("digits"))], None, 1, Console(quiet=True))


Change = Callable[[Sweep], None]


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_result(change: Callable[[dict[str, Any]], Any], of: str = "cnn5") -> Change:
    return lambda sweep: edit_json(getattr(sweep, of) / folder.RESULT, change)


def change_metrics(of: str = "cnn5", **metrics: Any) -> Change:
    """Change metrics by their names, "/" written as "__"."""
    changed = {name.replace("__", "/"): value for name, value in metrics.items()}
    return change_result(lambda content: content["metrics"].update(changed), of)


def change_config(of: str = "cnn5", **changes: Any) -> Change:
    """Change a trial's config, and with it its key, wherever the key stands."""

    def change(sweep: Sweep) -> None:
        trial_dir = getattr(sweep, of)
        edit_json(trial_dir / folder.TRIAL, lambda content: content["config"].update(changes))
        make_key(sweep, of)

    return change


def make_key(sweep: Sweep, of: str = "cnn5") -> None:
    """Write the key of a changed trial.json wherever the old one stands."""
    trial_dir = getattr(sweep, of)
    content = json.loads((trial_dir / folder.TRIAL).read_text())
    old, key = content["key"], Trial.model_validate(content["config"]).key(content["fingerprint"])
    for path in [*trial_dir.glob("*.json"), *trial_dir.glob("certified/*/*.json")]:
        path.write_text(path.read_text().replace(old, key))
    trial_dir.rename(trial_dir.with_name(key))
    sweep.keys[of] = key


def change_table(change: Callable[[pd.DataFrame], pd.DataFrame | None], of: str = "cnn5") -> Change:
    """Change the table of verdicts, and the errors with it."""

    def damage(sweep: Sweep) -> None:
        directory = getattr(sweep, of)
        table = pd.read_parquet(directory / folder.VERDICTS)
        changed = change(table)
        table = table if changed is None else changed
        table.to_parquet(directory / folder.VERDICTS)
        if set(table) >= {names.VERDICT, names.STAGE, names.WIDTH}:
            stages = STAGES.get(of, ("ibp", "crown-ibp", "bab"))
            errors = finite_or_none(final_metrics(EvaluationResult(table, {}, 0.0, 1.0, {}, {}), stages))
            del errors[names.BOUND_WIDTH], errors[names.BOUND_WIDTH_RELATIVE]
            change_result(lambda content: content["metrics"].update(errors), of)(sweep)

    return damage


def change_row(current: str, of: str = "cnn5", **values: Any) -> Change:
    """Change columns of the first image with this verdict, or stage; "-" is written as "__"."""

    def change(table: pd.DataFrame) -> None:
        row = table.index[(table[names.VERDICT] == current) | (table[names.STAGE] == current)][0]
        for name, value in values.items():
            table.loc[row, name.replace("__", "-")] = value
        if current == names.MISCLASSIFIED and values.get(names.VERDICT):
            table.loc[row, names.PREDICTION] = table.loc[row, names.LABEL]

    return change_table(change, of)


def change_tensors(name: str, change: Callable[[dict[str, Any]], Any], of: str = "cnn5") -> Change:
    """Change the tensors of a file; `change` returns others, or changes these."""

    def damage(sweep: Sweep) -> None:
        path = getattr(sweep, of) / name
        tensors = load_file(path)
        changed = change(tensors)
        tensors = changed if isinstance(changed, dict) else tensors
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)

    return damage
