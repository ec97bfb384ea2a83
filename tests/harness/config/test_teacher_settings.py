"""A teacher in a sweep file: a training of its own, which is part of its student's."""

import json

import pytest
import torch
from small_sweep import changed, entry, refusal, trainings_of

from baselines import build
from harness.config.training import Training

FINGERPRINT = "0123456789abcdef"


def sweep(*entries, **keys):
    return changed(("trials", list(entries)), *keys.items())


def student(by="cc-dist", **teacher):
    return entry(by, method_options={"teacher": {"model": "cnn5", **teacher}})


def test_a_teacher_is_the_training_that_the_sweep_would_have_of_its_mapping(tmp_path):
    content = sweep(entry("pgd", train={"epochs": 5}), student(train={"epochs": 5}), validation_images=10, width=0.5)
    listed, also_listed, one, other = trainings_of(tmp_path, content)
    assert (one.own_teacher, other.own_teacher) == (listed, also_listed)
    assert one.own_teacher.key(FINGERPRINT) == listed.key(FINGERPRINT)
    assert one.label == "cnn5 cc-dist teacher=(cnn5 pgd train.epochs=5) seed 0"


def test_a_teacher_has_its_student_s_radius_seed_and_held_out_images(tmp_path):
    own = student() | {"train": {"eps": "1/8"}, "width": 0.3}
    one = trainings_of(tmp_path, sweep(own))[1]
    assert (str(one.own_teacher.train.eps), one.own_teacher.seed, one.own_teacher.width) == ("1/8", 1, 0.3)
    held_out = one.replace(validation_images=100, seed=4).own_teacher
    assert (held_out.validation_images, held_out.seed) == (100, 4)
    wider = student("ad-cert", width=0.4, train={"eps": "1/4"}) | {"train": {"eps": "1/8"}}
    teacher = trainings_of(tmp_path, sweep(wider))[0].own_teacher
    assert (str(teacher.train.eps), teacher.width, teacher.method) == ("1/4", 0.4, "pgd")


def test_a_teacher_without_a_model_is_the_student_s_network(tmp_path):
    def teacher(**own):
        row = entry("cc-dist", model="cerdeq", options={"gain": 0.4, "margin": 0.2}, method_options={"teacher": own})
        return trainings_of(tmp_path, sweep(row))[0].own_teacher.row

    assert teacher() == "cerdeq pgd gain=0.4 margin=0.2"
    assert teacher(method="ibp", options={"margin": 0.4}) == "cerdeq ibp gain=0.4 margin=0.4"
    assert teacher(model="cerdeq", options={"margin": 0.4}) == "cerdeq pgd margin=0.4"
    assert teacher(model="cnn7") == "cnn7 pgd"


def test_the_file_of_a_teacher_that_does_not_fit_is_named_by_its_key(tmp_path):
    torch.save(build("cnn5", "digits", width=0.5).state_dict(), tmp_path / "wide.pt")
    message = refusal(tmp_path, sweep(student(checkpoint="wide.pt")))
    assert "trials.0.method_options.teacher.checkpoint: " in message and "wide.pt" in message


def test_null_is_a_teacher_s_default(tmp_path):
    own = student() | {"width": 0.3}
    written = student(width=None, checkpoint=None) | {"width": 0.3}
    one, other = (trainings_of(tmp_path, sweep(each))[0].own_teacher for each in (own, written))
    assert one == other


def test_the_teacher_is_part_of_the_student_s_key_and_survives_json(tmp_path):
    keys = set()
    for teacher in ({}, {"model": "cnn7"}, {"method": "ibp"}, {"train": {"epochs": 9}}):
        one = trainings_of(tmp_path, sweep(student("ad-cert", **teacher)))[0]
        read = Training.model_validate(json.loads(json.dumps(one.model_dump(mode="json"))))
        assert read == one and read.own_teacher == one.own_teacher
        keys.add(one.key(FINGERPRINT))
    assert len(keys) == 4
    assert "teacher" not in trainings_of(tmp_path, sweep(entry("mtl-ibp")))[0].canonical()


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        (entry("cc-dist"), "method_options: teacher: found None, allowed: a mapping"),
        (student(model="cnn6"), "method_options.teacher.model: found 'cnn6'"),
        (student(method_options={"attack_step": 0}), "method_options.teacher.method_options: attack_step: found 0"),
        (student(width=0.5), "method_options: teacher: found "),
        (entry("mtl-ibp", method_options={"teacher": {"model": "cnn5"}}), "unknown option of mtl-ibp"),
        (
            student(method="ad-cert", method_options={"teacher": {"model": "cnn5"}}),
            "trials.0.method_options.teacher.method_options.teacher: found {'model': 'cnn5'}, allowed: none",
        ),
    ],
)
def test_a_wrong_teacher_is_refused_with_its_key(tmp_path, trial, message):
    assert message in refusal(tmp_path, sweep(trial))
