"""A small finished sweep, and what a liar changes in a copy of it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file, save_file

from harness.common import names
from harness.common.models import validate
from harness.config.training import Training
from harness.data import load
from harness.evaluation.metrics import final_metrics, finite_or_none
from harness.evaluation.ranges import open_evaluation
from harness.evaluation.verdicts import EvaluationResult
from harness.leaderboard.files import write_leaderboard
from harness.pretrained.network_file import digest_of
from harness.settings import Evaluation
from harness.storage import folder

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKPOINT = {"file": "net.pt", "sha256": "a" * 64}
STAGES = {"cnn5": ("ibp", "crown-ibp", "alpha-crown"), "cerdeq": ("ibp", "crown-ibp")}
IMAGES = 24  # the first ones, among them every kind of verdict
CERTIFIED_IMAGES = 22


@dataclass(frozen=True)
class Sweep:
    """A sweep's directory: a CNN-5 with certificates, its evaluation by branch and bound, and a CerDEQ.

    folders: of evaluations, below the directory: "cnn5", "cerdeq" and "certified", the one by branch and bound.
    """

    root: Path
    folders: dict[str, str]

    @property
    def cnn5(self) -> Path:
        return self.evaluation_dir("cnn5")

    @property
    def network(self) -> Path:
        """The folder of the CNN-5 itself."""
        return folder.network_of(self.cnn5)

    @property
    def cerdeq(self) -> Path:
        return self.evaluation_dir("cerdeq")

    @property
    def certified(self) -> Path:
        return self.evaluation_dir("certified")

    def evaluation_dir(self, of: str) -> Path:
        return self.root / self.folders[of]

    def copy(self, to: Path) -> "Sweep":
        return Sweep(Path(shutil.copytree(self.root, to)), dict(self.folders))


def make_sweep(root: Path) -> Sweep:
    """Evaluate the golden networks on a few images, as sweeps do, and the CNN further."""
    paths = {name: _evaluate(_copy_network(root, name), STAGES[name], IMAGES) for name in STAGES}
    limits = {"bab_seconds": None, "bab_branches": 60}
    paths["certified"] = _evaluate(
        folder.network_of(paths["cnn5"]), ("ibp", "crown-ibp", "bab"), CERTIFIED_IMAGES, is_main=False, **limits
    )
    write_leaderboard(root, latex=True)
    return Sweep(root, {name: str(path.relative_to(root)) for name, path in paths.items()})


def _copy_network(root: Path, name: str) -> Path:
    record = folder.read_training(GOLDEN / name / folder.TRAINING)
    network_dir = folder.network_dir(root, record.key)
    network_dir.mkdir(parents=True)
    for file in (folder.TRAINING, folder.TRAINED, folder.WEIGHTS):
        shutil.copy(GOLDEN / name / file, network_dir)
    return network_dir


def _evaluate(network_dir: Path, stages: tuple[str, ...], images: int, is_main: bool = True, **limits: Any) -> Path:
    attack = {"attack": "margin", "attack_steps": 10, "attack_step": 1.0, "attack_restarts": 1}
    evaluation = folder.main_evaluation(GOLDEN / "cnn5").replace(
        stages=stages, test_images=images, certificates=True, **attack, **limits
    )
    if is_main:
        folder.add_to_study(network_dir, "full", evaluation)
    opened = open_evaluation(network_dir, evaluation, load("digits"))
    opened.evaluate_range(range(images))
    opened.finish()
    return opened.directory


Change = Callable[[Sweep], None]


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_result(change: Callable[[dict[str, Any]], Any], of: str = "cnn5") -> Change:
    return lambda sweep: edit_json(sweep.evaluation_dir(of) / folder.RESULT, change)


def change_metrics(of: str = "cnn5", **metrics: Any) -> Change:
    """Change metrics by their names, "/" written as "__"."""
    changed = {name.replace("__", "/"): value for name, value in metrics.items()}
    return change_result(lambda content: content["metrics"].update(changed), of)


def change_config(of: str = "cnn5", **changes: Any) -> Change:
    """Change a network's config, and with it its key, wherever the key stands."""

    def change(sweep: Sweep) -> None:
        network_dir = folder.network_of(sweep.evaluation_dir(of))
        edit_json(network_dir / folder.TRAINING, lambda content: content["config"].update(changes))
        make_key(sweep, of)

    return change


def change_evaluation(of: str = "cnn5", **changes: Any) -> Change:
    """Change the settings of an evaluation, and with them its key, wherever the key stands."""

    def change(sweep: Sweep) -> None:
        path = sweep.evaluation_dir(of)
        edit_json(path / folder.EVALUATION, lambda content: content["config"].update(changes))
        config = json.loads((path / folder.EVALUATION).read_text())["config"]
        _rename(sweep, path, validate(Evaluation, config, is_json=True).key)

    return change


def make_key(sweep: Sweep, of: str = "cnn5") -> None:
    """Write the key of a changed training.json wherever the old one stands."""
    network_dir = folder.network_of(sweep.evaluation_dir(of))
    content = json.loads((network_dir / folder.TRAINING).read_text())
    _rename(sweep, network_dir, validate(Training, content["config"], is_json=True).key(content["fingerprint"]))


def _rename(sweep: Sweep, path: Path, key: str) -> None:
    network_dir = path if path.parent.name == folder.NETWORKS else folder.network_of(path)
    for file in network_dir.rglob("*.json"):
        file.write_text(file.read_text().replace(path.name, key))
    for name, relative in sweep.folders.items():
        sweep.folders[name] = relative.replace(path.name, key)
    path.rename(path.with_name(key))


def change_table(change: Callable[[pd.DataFrame], pd.DataFrame | None], of: str = "cnn5") -> Change:
    """Change the table of verdicts, and the errors with it."""

    def damage(sweep: Sweep) -> None:
        directory = sweep.evaluation_dir(of)
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


def write_digest(weights: Path) -> None:
    """Note the digest of changed weights in all results of the network, as a liar would."""
    for path in [weights.parent / folder.TRAINED, *weights.parent.glob(f"{folder.EVALUATIONS}/*/{folder.RESULT}")]:
        edit_json(path, lambda content: content.update(weights=digest_of(weights.read_bytes())))


def change_tensors(name: str, change: Callable[[dict[str, Any]], Any], of: str = "cnn5") -> Change:
    """Change the tensors of a file; `change` returns others, or changes these."""

    def damage(sweep: Sweep) -> None:
        path = sweep.evaluation_dir(of) / name
        path = folder.network_of(path.parent) / name if name == folder.WEIGHTS else path
        tensors = load_file(path)
        changed = change(tensors)
        tensors = changed if isinstance(changed, dict) else tensors
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
        if name == folder.WEIGHTS:
            write_digest(path)

    return damage
