"""docs/clusters/slurm.sh, edited as users do, on a Slurm of this machine: stopped jobs go on in the next one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import wait_for
from slurm import processes_with, slurm
from study import LONG, SETTINGS, Study
from test_soak import contents, logged, table

from harness.common import names
from harness.storage import folder, training_progress

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "docs/clusters/slurm.sh"
EPOCHS = 50  # so many that some are left when Slurm looks at time limits, which it does each half minute
SETTINGS_OF_TRAINING = {**LONG["train"], "epochs": EPOCHS}
SWEEP = {**LONG, "name": "submitted", "seeds": [0, 1], "train": SETTINGS_OF_TRAINING}
PATIENCE = 900  # seconds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MLflow's, of SQLAlchemy
]


@pytest.fixture(scope="module")
def environment():
    inherited = {name: value for name, value in os.environ.items() if name not in (*SETTINGS, "RAY_AUTH_MODE")}
    with slurm() as settings:
        yield {**inherited, **settings, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def quiet(environment, tmp_path_factory):
    """The same sweep without Slurm."""
    study = make_study(tmp_path_factory.mktemp("quiet"))
    driver = study.start()
    driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0
    return study


def make_study(root):
    return Study(root, SWEEP, f"sqlite:///{root}/mlflow.db")


class Job:
    """A job of the edited script in a study's directory."""

    def __init__(self, study, nodes, environment):
        self.environment = environment
        edits = {
            "#SBATCH --partition": "",
            "#SBATCH --nodes": f"#SBATCH --nodes={nodes} --exclusive --mem=0",
            "#SBATCH --chdir": f"#SBATCH --chdir={study.root}",
            "environment=": f"environment={sys.prefix}/bin/activate",
            "sweep=": f"sweep=({study.file} --tracking-uri {study.store})",
        }
        lines = SCRIPT.read_text().splitlines()
        for start, edited in edits.items():
            (number,) = [number for number, line in enumerate(lines) if line.startswith(start)]
            lines[number] = edited
        (study.root / "slurm.sh").write_text("\n".join(lines) + "\n")
        self.id = self.run("sbatch", "--parsable", str(study.root / "slurm.sh")).strip()
        self.log = study.root / f"slurm-{self.id}.txt"

    def run(self, *command):
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True).stdout

    def field(self, name):
        fields = dict(text.partition("=")[::2] for text in self.run("scontrol", "show", "job", self.id).split())
        return fields[name]

    def has_ended(self):
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
        return self.field("JobState") in ended and not self.run("squeue", "--noheader", "--jobs", self.id)

    def wait(self):
        """The exit status of the script once the job has ended, and what the job printed."""
        wait_for(self.has_ended, PATIENCE)
        return int(self.field("ExitCode").partition(":")[0]), self.log.read_text()


def scancel(job):
    job.run("scancel", job.id)


def near_the_limit(job):
    """Lower the time limit so far that less time is left than --signal has."""
    job.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=9")


@pytest.mark.parametrize(("nodes", "stop"), [(2, scancel), (1, near_the_limit)])
def test_a_stopped_job_saves_its_epochs_and_the_next_one_goes_on(quiet, environment, tmp_path, nodes, stop):
    study = make_study(tmp_path)
    job = Job(study, nodes, environment)

    def saved():
        """The epoch of each network's last checkpoint, which is written half a minute after the one before."""
        return {path: torch.load(path)["epoch"] for path in checkpoints if path.exists()}

    checkpoints = [network_dir / folder.CHECKPOINT for network_dir in study.network_dirs.values()]
    wait_for(lambda: len(saved()) == len(checkpoints) or job.has_ended(), PATIENCE)
    before = saved()
    stop(job)
    status, printed = job.wait()
    assert status == 143 and "the same command continues" in printed, printed
    assert job.field("NumNodes") == str(nodes)
    after = saved()
    assert all(before[path] <= after[path] < EPOCHS for path in checkpoints)
    again = Job(study, nodes, environment)
    status, printed = again.wait()
    assert status == 0 and again.field("JobState") == "COMPLETED", printed
    assert "Killed" not in printed and "srun" not in printed
    wait_for(lambda: not processes_with(f"SLURM_JOB_ID={again.id}"), 120)  # agents of Ray look for it each minute
    for network_dir in study.network_dirs.values():
        assert [row[names.EPOCH] for row in training_progress.read_epochs(network_dir)] == list(range(EPOCHS + 1))
    assert contents(study) == contents(quiet)
    assert logged(study) == logged(quiet)
    assert table(study) == table(quiet)
