"""The key `evaluation`: a mapping or a list, at one radius or several; what changes it, and which keys follow."""

import pytest
from small_sweep import changed, load_sweep, trainings_of, write

from harness.settings import Evaluation

SEVERAL = [{"stages": ["ibp"], "eps": ["1/32", "1/16"]}, {"stages": ["ibp", "bab"], "test_images": 20}]


def evaluations(tmp_path, content, profile="full", *assignments):
    return load_sweep(write(tmp_path, content), profile, True, assignments).evaluations


def test_each_mapping_is_an_evaluation_at_each_of_its_radii_in_the_file_s_order(tmp_path):
    assert evaluations(tmp_path, changed(("evaluation", SEVERAL))) == [
        Evaluation(eps="1/32", stages=("ibp",)),
        Evaluation(eps="1/16", stages=("ibp",)),
        Evaluation(eps="1/16", stages=("ibp", "bab"), test_images=20),
    ]


@pytest.mark.parametrize("written", [{"eps": "1/32"}, {"eps": 0.03125}, {"eps": ["1/32"]}, [{"eps": "2/64"}]])
def test_one_evaluation_has_several_spellings(tmp_path, written):
    assert evaluations(tmp_path, changed(("evaluation", written))) == [Evaluation(eps="1/32")]


def test_an_evaluation_without_a_radius_has_the_sweep_s_and_not_that_of_training(tmp_path):
    study = load_sweep(
        write(tmp_path, changed(("train.eps", "1/10"), ("evaluation.eps", ["1/20", "1/16"]))), "full", True
    )
    assert [str(each.eps) for each in study.evaluations] == ["1/20", "1/16"]
    assert {str(training.train.eps) for training in study.trainings} == {"1/10"}
    (main,) = evaluations(tmp_path, changed(("train.eps", "1/10")))
    assert str(main.eps) == "1/16"


def test_images_held_out_are_evaluated_in_all_evaluations(tmp_path):
    content = changed(("evaluation", SEVERAL), ("validation_images", 50))
    assert {(each.split, each.test_images) for each in evaluations(tmp_path, content)} == {("validation", None)}


MERGED = {  # evaluation of the file, that of a profile, the merged one
    "a mapping into a mapping": ({"test_images": 9, "eps": "1/8"}, {"eps": ["1/9"]}, {"test_images": 9, "eps": "1/9"}),
    "a mapping into each of a list": (
        [{"test_images": 9}, {"test_images": 8, "attack_steps": 5}],
        {"test_images": 7},
        [{"test_images": 7}, {"test_images": 7, "attack_steps": 5}],
    ),
    "a list over a mapping": (
        {"test_images": 9, "attack_steps": 5},
        [{}, {"test_images": 8}],
        [{"test_images": 9, "attack_steps": 5}, {"test_images": 8, "attack_steps": 5}],
    ),
    "a list for a list": ([{"test_images": 9}], [{"attack_steps": 5}, {}], [{"attack_steps": 5}, {}]),
}


@pytest.mark.parametrize("case", MERGED)
def test_a_profile_an_include_and_an_assignment_merge_alike(tmp_path, case):
    base, change, merged = MERGED[case]
    expected = evaluations(tmp_path, changed(("evaluation", merged)))
    assert (
        evaluations(tmp_path, changed(("evaluation", base), ("profiles.mine.evaluation", change)), "mine") == expected
    )
    assert evaluations(tmp_path, changed(("evaluation", base)), "full", f"evaluation={change}") == expected
    write(tmp_path, {"evaluation": base}, "included.yaml")
    assert evaluations(tmp_path, changed(("evaluation", change), ("include", "included.yaml"))) == expected


def test_an_assignment_of_a_key_changes_each_evaluation(tmp_path):
    changed_ones = evaluations(tmp_path, changed(("evaluation", SEVERAL)), "full", "evaluation.attack_steps=7")
    assert changed_ones == [
        each.replace(attack_steps=7) for each in evaluations(tmp_path, changed(("evaluation", SEVERAL)))
    ]


def keys(study):
    return [training.key("data") for training in study.trainings], [each.key for each in study.evaluations]


def test_the_key_of_a_network_follows_neither_evaluation_nor_name_nor_profile(tmp_path):
    content = changed(("profiles", {"mine": {"evaluation": SEVERAL}}))
    path = write(tmp_path, content)
    networks, ways = keys(load_sweep(path, "full", True))
    other_networks, other_ways = keys(load_sweep(path, "mine", True))
    assert networks == other_networks and not set(ways) & set(other_ways)
    assert keys(load_sweep(write(tmp_path, content | {"name": "other"}), "full", True)) == (networks, ways)
    assert keys(load_sweep(path, "full", True, ["evaluation.eps=1/9"]))[0] == networks
    at_its_radius = changed(("train.eps", "1/16"), ("eps", "1/9"))
    assert keys(load_sweep(write(tmp_path, at_its_radius), "full", True))[0] == networks


def test_the_key_of_an_evaluation_does_not_follow_training(tmp_path):
    _, ways = keys(load_sweep(write(tmp_path, changed()), "full", True))
    other = changed(
        ("train.epochs", 5), ("seeds", [7]), ("width", 0.5), ("trials.0.model", "cnn7"), ("train.eps", "1/9")
    )
    assert keys(load_sweep(write(tmp_path, other), "full", True))[1] == ways


def test_an_assignment_of_evaluations_makes_no_other_profile(tmp_path):
    study = load_sweep(write(tmp_path, changed()), "full", True, ["evaluation.eps=1/9", "evaluation.stages=[ibp]"])
    assert study.profile == "full"
    assert study.trainings == trainings_of(tmp_path, changed())
