"""A network that is trained and evaluated in this process, as by the jobs of a command."""

from harness.config.plugins import load_for
from harness.data import load
from harness.evaluation.ranges import evaluated_images
from harness.machine.environment import source_digest
from harness.storage.records import make_record
from harness.training.checkpoint import SAVE_SECONDS
from harness.training.train import train
from harness.work.jobs import Job, Train, do_job, make_jobs


def jobs_of(training, evaluations, network_dir, data_dir=None, device="cpu"):
    """The jobs of a network."""
    load_for(training)  # as a command imports the plugins of its file
    data = load(training.data_source, data_dir)
    counts = [(each, len(evaluated_images(data, training.validation_images, each))) for each in evaluations]
    record = make_record(training, data.fingerprint)
    jobs = make_jobs(network_dir, record, counts, device, training.label)
    return jobs or [Job(network_dir, record, (Train(),), training.label)]


def train_and_evaluate(
    training,
    evaluations,
    network_dir,
    report=lambda row: None,
    data_dir=None,
    save_seconds=SAVE_SECONDS,
    device="cpu",
    code=None,
):
    """Do the jobs of a network, one after the other. save_seconds: as in `train`."""
    jobs = jobs_of(training, evaluations, network_dir, data_dir, device)
    if save_seconds != SAVE_SECONDS:
        train(jobs[0].record, network_dir, report, data_dir, save_seconds)
    for job in jobs:
        do_job(job, report, data_dir, code or source_digest())
