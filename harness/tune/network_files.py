"""Networks that results describe: checked against this code and its data, and trained again in this process."""

from collections.abc import Callable, Collection, Iterable
from functools import cache, partial
from pathlib import Path

from rich.console import Console

from harness.common.errors import SettingError, located, require
from harness.config.buildable import check_buildable
from harness.config.own_data import OwnData
from harness.config.plugins import load_for, require_trusted
from harness.config.training import RECIPE_VERSION
from harness.data import Data, load
from harness.evaluation.ranges import evaluated_images
from harness.pretrained.network_file import read_file
from harness.settings import Evaluation
from harness.storage import folder
from harness.storage.files import DamagedFileError, make_directory, refuse_links
from harness.storage.records import TrainingRecord
from harness.storage.state import State, read_state
from harness.training.train import check_images
from harness.tune.items import Item
from harness.tune.plan import with_teachers
from harness.tune.run_study import RunOptions, run_networks


def run_network_files(
    paths: list[Path], results_dir: Path, data_dir: str | None, console: Console, trusted: Collection[str]
) -> bool:
    """Train networks again, and evaluate them as beside their files; return True if all have a result then.

    paths: of files training.json. trusted: the plugins that may be imported. Raises InputError for a file that is no
    network of this code or names another plugin, or data that is not the network's; nothing was started.
    """
    records, evaluations = dict[Path, TrainingRecord](), dict[Path, list[Evaluation]]()
    sources, checkpoints, studies = dict[Path, Path](), dict[str, Path](), dict[Path, dict[str, str]]()
    load_once = cache(partial(load, data_dir=data_dir))  # the data is large, and shared
    for path in paths:
        record, asked = _load_record(path), _evaluations_beside(path)
        require_trusted(record.config, trusted)
        sweep_dir = results_dir / folder.sweep_dir_of(path.parent).name
        refuse_links(sweep_dir)
        network_dir = folder.network_dir(sweep_dir, record.key)
        with located(f"{path}: "):
            check_images(record.config, load_data(record, asked, load_once))
        if record.config.checkpoint is not None:
            stored = network_dir / folder.NETWORK_FILE
            sources[network_dir] = stored if stored.exists() else path.with_name(folder.NETWORK_FILE)
            read_file(sources[network_dir], record.config.checkpoint)
        if (teacher := record.config.own_teacher) is not None and teacher.checkpoint is not None:
            teacher_dir = path.parent.with_name(teacher.key(record.fingerprint))
            checkpoints[teacher.checkpoint.sha256] = teacher_dir / folder.NETWORK_FILE
            with located(f"{path}: method_options.teacher."):
                read_file(teacher_dir / folder.NETWORK_FILE, teacher.checkpoint)
        records[network_dir], evaluations[network_dir] = record, asked
        studies[network_dir] = folder.read_study(path.parent)
    items = []
    for network_dir, record in records.items():
        make_directory(network_dir)
        for profile, main in studies[network_dir].items():
            asked = evaluations[network_dir]
            folder.add_to_study(network_dir, profile, next((one for one in asked if one.key == main), asked[0]))
        folder.begin_network(network_dir, record)
        paths_of = [folder.begin_evaluation(network_dir, evaluation) for evaluation in evaluations[network_dir]]
        if record.config.checkpoint is not None:
            folder.copy_network_file(record.config.checkpoint, sources[network_dir], network_dir / folder.NETWORK_FILE)
        states = [read_state(path).state for path in paths_of]
        is_finished = all(state is State.FINISHED for state in states)
        console.print(f"{record.config.label} -> {network_dir}{': finished' if is_finished else ''}")
        items += [] if is_finished else [Item.of(network_dir, record.config, evaluations[network_dir])]
    states_after = run_networks(with_teachers(items, checkpoints), RunOptions(None, data_dir), console, None)
    return all(state.state is State.FINISHED for state in states_after.values())


def _load_record(path: Path) -> TrainingRecord:
    try:
        record = folder.read_training(path)
    except DamagedFileError as error:
        raise SettingError(str(path), str(error), "a sweep file *.yaml, or a training.json of results") from None
    version = record.recipe_version
    require(f"{path}: recipe_version", version, version == RECIPE_VERSION, f"{RECIPE_VERSION}, that of this code")
    return record


def _evaluations_beside(path: Path) -> list[Evaluation]:
    """Return the evaluations of the network whose training.json this is. Raises InputError if there are none."""
    records = [folder.read_evaluation(directory) for directory in folder.evaluation_folders(path.parent)]
    allowed = f"{folder.EVALUATIONS}/<key>/{folder.EVALUATION} beside it"
    require(str(path), "no evaluation", bool(records), allowed)
    return [record.config for record in records]


def load_data(
    record: TrainingRecord, evaluations: Iterable[Evaluation], load_source: Callable[[str | OwnData], Data]
) -> Data:  # fmt: skip
    """Return the data set of a network, after checking that this code can train and evaluate it.

    load_source: `harness.data.load`. Raises InputError if it cannot, or if the data is missing, small or another one.
    """
    for training in filter(None, (record.config, record.config.teacher)):
        load_for(training)
    check_buildable(record.config, evaluations)
    data = load_source(record.config.data_source)
    fits = data.fingerprint == record.fingerprint
    require("data", data.fingerprint, fits, f"the data it was made for, {record.fingerprint}")
    for evaluation in evaluations:
        evaluated_images(data, record.config.validation_images, evaluation)
    return data
