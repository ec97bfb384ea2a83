"""Teachers: networks that others learn from. Each is trained once, before its students, in a folder beside theirs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from harness.storage import folder
from harness.storage.records import make_record
from harness.tune.items import Item
from harness.tune.plan import adopt_network


def with_teachers(
    items: list[Item], checkpoints: Mapping[str, Path], retry_failed: bool = False
) -> list[Item]:  # fmt: skip
    """Return the items, before them those that train their teachers, for which they wait; make the teachers' folders.

    A teacher that a sweep beside this one has trained is copied. checkpoints: files of networks trained elsewhere, by
    their SHA-256. retry_failed: also train a teacher again that would fail the same way.
    """
    teachers, students = dict[Path, Item](), list[Item]()
    for item in items:
        record = folder.read_training(item.directory / folder.TRAINING)
        training, is_trained = record.config.own_teacher, folder.is_trained(item.directory)
        if training is None or is_trained:
            students.append(item)
            continue
        own = make_record(training, record.fingerprint)
        teacher_dir = item.directory.with_name(own.key)
        students.append(replace(item, needs=teacher_dir))
        if teacher_dir in teachers:
            continue
        adopt_network(teacher_dir, item.directory.parents[2], [])
        folder.begin_network(teacher_dir, own)
        (teacher_dir / folder.TEACHER).touch()
        if training.checkpoint is not None:
            path = checkpoints[training.checkpoint.sha256]
            folder.copy_network_file(training.checkpoint, path, teacher_dir / folder.NETWORK_FILE)
        failure = folder.read_failure(teacher_dir)
        would_fail = failure is not None and failure.repeats and not retry_failed
        if not would_fail and not folder.is_trained(teacher_dir):
            teachers[teacher_dir] = Item.of(teacher_dir, training, [], label=f"teacher {training.label}")
    # A network of the study that is also a teacher is not trained by two items at once.
    return [*teachers.values(), *(replace(item, needs=item.needs or item.directory) for item in students)]
