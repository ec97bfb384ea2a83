"""What one evaluation takes over from others of the same network is what it would have answered itself."""

import functools
import json
import shutil

import pandas as pd
import pytest
import torch
from one_network import train_and_evaluate
from safetensors.torch import load_file, save_file

from cerdeq.deadline import DeadlineError
from cerdeq.equilibrium import NotConvergedError
from harness.checker.evaluation import recheck
from harness.common import names
from harness.common.radius import Radius
from harness.data import load
from harness.evaluation import attack, ibp, stages
from harness.evaluation.ledger import SoundnessError
from harness.evaluation.ranges import open_evaluation
from harness.settings import Evaluation
from harness.storage import folder
from harness.storage.parquet import read_table, write_table

CHEAP, ALL = ("ibp", "crown-ibp"), ("ibp", "crown-ibp", "bab")
BOUNDED = names.margin_column("crown-ibp")


def evaluation_of(**changes):
    """An evaluation of 16 digits, of which each stage decides some."""
    settings = {"stages": ALL, "bab_seconds": None, "bab_branches": 8, "certificates": True}
    images = {"test_images": 16, "batch_size": 8}
    weak = {"attack": "margin", "attack_steps": 10, "attack_step": 0.5, "attack_restarts": 1}
    return Evaluation(**{"eps": Radius("1/12"), **settings, **images, **weak, **changes})


def cheap(**changes):
    return evaluation_of(**{"stages": CHEAP, "certificates": False, **changes})


@pytest.fixture(scope="module")
def training(tiny_training):
    recipe = {"epochs": 6, "batch_size": 32, "ramp_epochs": 3, "learning_rate": 5e-3, "eps": Radius("1/64")}
    held_out = {"train_images": 640, "validation_images": 40}
    return tiny_training("fc", options={"hidden": [10]}, width=1.0, train=recipe, **held_out)


@pytest.fixture(scope="module")
def evaluated(training, tmp_path_factory):
    """A function of an evaluation to the folder of a network that has this one alone; no test may change it."""
    trained = tmp_path_factory.mktemp("trained") / "network"
    train_and_evaluate(training, [], trained)

    @functools.cache
    def of(text):
        network_dir = shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "network")
        train_and_evaluate(training, [Evaluation.model_validate_json(text)], network_dir)
        return network_dir

    return lambda evaluation: of(evaluation.model_dump_json())


@pytest.fixture
def add(training, evaluated, tmp_path):
    """A function of evaluations to the folder of a copied network to which they are added, one after the other."""

    def evaluate(first, *further):
        network_dir = tmp_path / "network"
        if not network_dir.exists():
            shutil.copytree(evaluated(first), network_dir)
        for evaluation in further:
            train_and_evaluate(training, [evaluation], network_dir)
        return network_dir

    return evaluate


def files_of(network_dir, evaluation):
    """The table of verdicts, the proofs, the metrics without seconds, and what is taken over."""
    directory = folder.evaluation_dir(network_dir, evaluation)
    proofs = load_file(directory / folder.COUNTEREXAMPLES)
    if (directory / folder.CERTIFICATES).exists():
        proofs |= load_file(directory / folder.CERTIFICATES)
    result = folder.read_result(directory)
    metrics = {name: value for name, value in result.metrics.items() if "seconds" not in name}
    return read_table(directory / folder.VERDICTS), proofs, metrics, result.taken_over


def assert_as_fresh(network_dir, evaluation, fresh_dir, is_exact=True):
    """All is as if there were no other evaluation, but for the rounding of images that are now asked alone.

    Returns the table.
    """
    (table, proofs, metrics, _), (expected, fresh_proofs, fresh_metrics, taken) = (
        files_of(path, evaluation) for path in (network_dir, fresh_dir)
    )
    assert taken == {}
    is_taken = table[names.TAKEN_FROM] != ""
    own, fresh = (each.drop(columns=names.TAKEN_FROM) for each in (table, expected))
    pd.testing.assert_frame_equal(own, fresh, rtol=1e-5, atol=1e-6)
    pd.testing.assert_frame_equal(own[is_taken], fresh[is_taken], check_exact=is_exact)
    assert metrics == fresh_metrics
    assert proofs.keys() == fresh_proofs.keys()
    assert all(proofs[name].equal(tensor) for name, tensor in fresh_proofs.items())
    return table


def assert_confirmed(network_dir, evaluation):
    """The checker proves each verdict again: a counterexample lies in the ball, a certificate proves its image."""
    result = recheck(folder.evaluation_dir(network_dir, evaluation))
    assert result.problems == [] and result.is_complete


SAME_EPS = {
    "one more stage": (evaluation_of(stages=CHEAP), evaluation_of()),
    "one stage less": (evaluation_of(), evaluation_of(stages=CHEAP)),
    "more images": (evaluation_of(test_images=8), evaluation_of()),
    "fewer images": (evaluation_of(), evaluation_of(test_images=8)),
    "a larger limit": (evaluation_of(bab_branches=2), evaluation_of()),
    "a smaller limit": (evaluation_of(), evaluation_of(bab_branches=2)),
    "no limit of seconds": (evaluation_of(bab_seconds=600.0), evaluation_of()),
    "with certificates": (evaluation_of(certificates=False), evaluation_of()),
    "without certificates": (evaluation_of(), evaluation_of(certificates=False)),
    "another attack": (cheap(attack_steps=1), cheap()),
}


@pytest.mark.parametrize("case", SAME_EPS)
def test_an_evaluation_after_another_one_is_the_one_that_stands_alone(case, evaluated, add):
    first, second = SAME_EPS[case]
    network_dir = add(first, second)
    table = assert_as_fresh(network_dir, second, evaluated(second))
    taken = table[table[names.TAKEN_FROM] != ""]
    assert set(taken[names.TAKEN_FROM]) == {first.key}
    counts = {first.key: len(taken)}
    assert files_of(network_dir, second)[3] == counts
    assert set(taken[names.STAGE]) <= {names.ATTACK, *second.stages} - {names.IBP, names.CLEAN} | {"none"}
    if case == "another attack":
        assert names.ATTACK not in set(taken[names.STAGE])
    if second.certificates:
        assert_confirmed(network_dir, second)


@pytest.mark.parametrize(("one", "other"), [("1/16", "1/12"), ("1/12", "1/13")])
def test_another_eps_decides_what_stands_and_no_less(one, other, evaluated, add):
    """Of a larger eps what is certified stands, of a smaller one what is falsified; the checker confirms all."""
    first, second = evaluation_of(eps=Radius(one)), evaluation_of(eps=Radius(other))
    network_dir = add(first, second)
    (table, proofs, metrics, taken), (fresh, _, fresh_metrics, _) = (
        files_of(path, second) for path in (network_dir, evaluated(second))
    )
    decided = fresh[names.VERDICT].isin([names.MISCLASSIFIED, names.FALSIFIED, names.CERTIFIED])
    same = [names.VERDICT, names.STAGE, names.PREDICTION]
    assert table.loc[decided, same].equals(fresh.loc[decided, same])
    for column in (names.WIDTH, names.margin_column("ibp")):
        assert table[column].equals(fresh[column])
    assert metrics[names.BOUND_WIDTH] == fresh_metrics[names.BOUND_WIDTH]
    assert metrics[names.CERTIFIED_ERROR] <= fresh_metrics[names.CERTIFIED_ERROR]
    own = table[table[names.TAKEN_FROM] == first.key]
    expected = {names.CERTIFIED} if first.eps > second.eps else {names.FALSIFIED}
    assert set(own[names.VERDICT]) == expected and taken == {first.key: len(own)} and len(own) > 0
    if first.eps > second.eps:
        assert names.BAB in set(own[names.STAGE]), "with its certificate"
    else:
        assert (own[names.ATTACK_MARGIN] < 0).all() and set(map(str, own[names.INDEX])) <= proofs.keys()
        assert own[names.margin_column("bab")].isna().all(), "a bound of a smaller ball is none of this one"
    assert_confirmed(network_dir, second)


def test_of_several_evaluations_a_decision_counts_more_than_a_timeout_at_a_nearer_eps(evaluated, add, tmp_path):
    """The nearer one stopped in the middle; what a larger eps certifies is certified."""
    stopped = evaluation_of(bab_branches=1, batch_size=4)
    larger, last = evaluation_of(eps=Radius("1/8"), bab_branches=1), evaluation_of(bab_branches=1)
    network_dir = add(stopped)
    others = shutil.copytree(
        folder.evaluation_dir(evaluated(larger), larger), folder.evaluation_dir(network_dir, larger)
    )
    table = read_table(others / folder.VERDICTS)
    certified = set(table.loc[table[names.VERDICT] == names.CERTIFIED, names.INDEX])
    add(stopped, last)
    final = files_of(network_dir, last)[0]
    assert certified <= set(final.loc[final[names.VERDICT] == names.CERTIFIED, names.INDEX])


def spoil_column(name, value):
    def spoil(directory, other):
        table = read_table(directory / folder.VERDICTS)
        write_table(directory / folder.VERDICTS, table.assign(**{name: value}))

    return spoil


def write_garbage(name):
    return lambda directory, other: (directory / name).write_bytes(b"PAR1 and no more")


def swap(name):
    return lambda directory, other: shutil.copyfile(other / name, directory / name)


def rename_key(directory, other):
    change_result(directory, key=f"0/{other.name}")


def change_result(directory, **changes):
    content = json.loads((directory / folder.RESULT).read_text())
    (directory / folder.RESULT).write_text(json.dumps(content | changes))


def exchange_verdicts(directory, other):
    """Certify an image in place of another one: all rates stay."""
    table = read_table(directory / folder.VERDICTS)
    certified, falsified = (table.index[table[names.VERDICT] == each][0] for each in ("certified", "falsified"))
    exchanged = [names.VERDICT, names.STAGE, BOUNDED, names.ATTACK_MARGIN]
    table.loc[[certified, falsified], exchanged] = table.loc[[falsified, certified], exchanged].to_numpy()
    write_table(directory / folder.VERDICTS, table)


def drop_margin(directory, other):
    table = read_table(directory / folder.VERDICTS)
    write_table(directory / folder.VERDICTS, table.drop(columns=BOUNDED))


NOTHING_TAKEN = {
    "no table": lambda directory, other: (directory / folder.VERDICTS).unlink(),
    "no parquet": write_garbage(folder.VERDICTS),
    "a table of another evaluation": swap(folder.VERDICTS),
    "a table without a column": drop_margin,
    "a column of another type": spoil_column(BOUNDED, "much"),
    "an index that repeats": spoil_column(names.INDEX, 3),
    "all certified": spoil_column(names.VERDICT, str(names.CERTIFIED)),
    "other labels": spoil_column(names.LABEL, 11),
    "no result": lambda directory, other: (directory / folder.RESULT).unlink(),
    "a damaged result": write_garbage(folder.RESULT),
    "a result of another evaluation": rename_key,
    "a damaged record": write_garbage(folder.EVALUATION),
    "a record of another evaluation": swap(folder.EVALUATION),
    "a result of another network": lambda directory, other: change_result(directory, key=f"0/{directory.name}"),
    "other weights": lambda directory, other: change_result(directory, weights="0" * 64),
    "verdicts of the same rates": exchange_verdicts,
}


@pytest.mark.parametrize("case", NOTHING_TAKEN)
def test_of_damaged_or_mixed_files_nothing_is_taken_over(case, evaluated, add):
    first, second, other = cheap(), cheap(test_images=15), cheap(eps=Radius("1/50"))
    network_dir = add(first)
    other_dir = folder.evaluation_dir(evaluated(other), other)
    NOTHING_TAKEN[case](folder.evaluation_dir(network_dir, first), other_dir)
    add(first, second)
    assert files_of(network_dir, second)[3] == {}
    assert_as_fresh(network_dir, second, evaluated(second))


def change_points(change):
    def spoil(path):
        save_file({name: change(tensor) for name, tensor in load_file(path).items()}, path)

    return spoil


POINTS = {
    "missing": lambda path: path.unlink(),
    "damaged": lambda path: path.write_bytes(b"nothing"),
    "empty": change_points(lambda tensor: torch.zeros(0)),
    "of another size": change_points(lambda tensor: tensor.flatten()[:-1].clone()),
    "of the image itself": change_points(lambda tensor: torch.zeros(1, 8, 8, dtype=torch.int16)),
    "outside of the ball": change_points(lambda tensor: torch.rand(1, 8, 8, dtype=torch.float64)),
}


@pytest.mark.parametrize("first", [cheap(), cheap(eps=Radius("1/16"))], ids=["same eps", "smaller eps"])
@pytest.mark.parametrize("case", POINTS)
def test_what_no_counterexample_proves_is_attacked_again(case, first, evaluated, add):
    second = cheap(test_images=15)
    network_dir = add(first)
    POINTS[case](folder.evaluation_dir(network_dir, first) / folder.COUNTEREXAMPLES)
    add(first, second)
    table = files_of(network_dir, second)[0]
    falsified = table[table[names.VERDICT] == names.FALSIFIED]
    assert len(falsified) and set(falsified[names.TAKEN_FROM]) == {""}
    fresh = files_of(evaluated(second), second)[0]
    assert table[names.VERDICT].equals(fresh[names.VERDICT])
    assert not [line for line in recheck(folder.evaluation_dir(network_dir, second)).problems if "falsified" in line]


def test_certificates_that_are_lost_are_searched_again(evaluated, add):
    first, second = evaluation_of(), evaluation_of(test_images=15)
    network_dir = add(first)
    (folder.evaluation_dir(network_dir, first) / folder.CERTIFICATES).unlink()
    add(first, second)
    table = files_of(network_dir, second)[0]
    assert set(table.loc[table[names.STAGE] == names.BAB, names.VERDICT]) >= {names.CERTIFIED}
    by_search = (table[names.STAGE] == names.BAB) & (table[names.VERDICT] == names.CERTIFIED)
    assert set(table.loc[by_search, names.TAKEN_FROM]) == {""}
    assert_confirmed(network_dir, second)


def test_images_of_another_split_are_others(evaluated, add):
    first, second = cheap(split="validation"), cheap()
    assert files_of(add(first, second), second)[3] == {}


def fail_for(stage, error):
    """Return a stand-in for `lower_bounds` in which a stage fails."""
    bounds = stages.lower_bounds

    def failing(program, region, spec, name, *arguments, **options):
        if name == stage:
            raise error
        return bounds(program, region, spec, name, *arguments, **options)

    return failing


@pytest.mark.parametrize("failed", ["clean", "attack", "crown-ibp", "crown-ibp after the attack"])
def test_a_stage_that_failed_is_asked_again(failed, evaluated, add, monkeypatch):
    """Also if another stage failed first, whose problem alone is noted, and if a later stage decided the image."""
    first, second = cheap(stages=("ibp", "crown-ibp", "crown")), cheap()
    network_dir, error = add(cheap(test_images=1)), NotConvergedError("no bounds today")

    def fail(*_):
        raise error

    if failed == "clean":
        bound = ibp.bound_margins

        def bound_some(program, x, *rest):
            return bound(program, x, *rest) if bool((x.sum((1, 2, 3)) > 20).all()) else fail()

        monkeypatch.setattr(ibp, "bound_margins", bound_some)
    if "attack" in failed:
        monkeypatch.setattr(attack, "worst_point", fail)
    if "crown-ibp" in failed:
        monkeypatch.setattr(stages, "lower_bounds", fail_for("crown-ibp", error))
    add(first, first)
    table = files_of(network_dir, first)[0]
    assert failed in ("clean", "crown-ibp") or names.FAILED in set(table[names.VERDICT])
    assert (names.NO_PREDICTION in set(table[names.PREDICTION])) == (failed == "clean")
    monkeypatch.undo()
    shutil.rmtree(folder.evaluation_dir(network_dir, cheap(test_images=1)))
    add(first, second)
    assert_as_fresh(network_dir, second, evaluated(second), is_exact=False)  # images were asked alone


def test_an_attack_that_ended_too_early_is_repeated_with_more_time(evaluated, add, monkeypatch):
    first, second = cheap(stage_seconds=600.0), cheap()
    network_dir, search = add(cheap(test_images=1)), attack.worst_point

    def late(*_):
        raise DeadlineError

    monkeypatch.setattr(attack, "worst_point", late)
    add(first, first)
    assert names.TIMEOUT in set(files_of(network_dir, first)[0][names.VERDICT])
    monkeypatch.setattr(attack, "worst_point", search)
    add(first, second)
    assert_as_fresh(network_dir, second, evaluated(second), is_exact=False)  # images were asked alone


def test_decisions_within_the_seconds_of_all_images_are_taken_over(evaluated, add):
    """Each range has its share; what is decided is decided, what was left open is asked again."""
    first = evaluation_of(bab_total_seconds=600.0, certificates=False)
    second = first.replace(test_images=12)
    network_dir = add(first, second)
    table = files_of(network_dir, second)[0]
    decided = table[names.STAGE].eq(names.BAB) & table[names.VERDICT].isin([names.CERTIFIED, names.FALSIFIED])
    assert decided.any() and set(table.loc[decided, names.TAKEN_FROM]) == {first.key}
    assert table[names.VERDICT].equals(files_of(evaluated(first), first)[0][names.VERDICT][:12])


def lie(monkeypatch):
    """Let crown certify everything, and the attack find nothing."""
    monkeypatch.setattr(stages, "lower_bounds", lambda program, region, spec, *_, **__: torch.ones(spec.shape[:2]))
    monkeypatch.setattr(attack, "worst_point", lambda model, x, *_: x)


WRONG, RIGHT = cheap(stages=("ibp", "crown"), eps=Radius("1/10"), attack_steps=1), cheap(eps=Radius("1/16"))


@pytest.mark.parametrize("order", [(WRONG, RIGHT), (RIGHT, WRONG)], ids=["falsified later", "certified later"])
def test_what_is_falsified_at_a_smaller_eps_than_certified_is_an_error(order, add, training, monkeypatch):
    network_dir = add(cheap(test_images=1))
    for evaluation in order:
        with monkeypatch.context() as patch:
            if evaluation is WRONG:
                lie(patch)
            if evaluation is order[0]:
                add(evaluation, evaluation)
                continue
            with pytest.raises(SoundnessError, match="both certified and falsified"):
                add(evaluation, evaluation)
    directory = folder.evaluation_dir(network_dir, order[1])
    assert folder.read_result(directory) is None and folder.read_failure(directory).repeats


def test_evaluations_that_contradict_each_other_while_both_run_are_an_error(add, monkeypatch):
    network_dir, data = add(cheap(test_images=1)), load("digits")
    wrong, right = (open_evaluation(network_dir, evaluation, data) for evaluation in (WRONG, RIGHT))
    with monkeypatch.context() as patch:
        lie(patch)
        wrong.evaluate_range(range(len(wrong.images)))
    right.evaluate_range(range(len(right.images)))
    right.finish()
    with pytest.raises(SoundnessError, match="both certified and falsified"):
        wrong.finish()


def test_no_order_of_evaluations_decides_less_or_otherwise(evaluated, add):
    """Of evaluations of all kinds, one after the other in two orders, the checker confirms each."""
    order = [
        cheap(eps=Radius("1/16"), test_images=10),
        cheap(eps=Radius("1/8")),
        cheap(stages=("ibp", "crown-ibp", "crown"), eps=Radius("1/12")),
        cheap(eps=Radius("1/12"), attack_steps=1),
        cheap(stages=("ibp",), eps=Radius("1/10")),
        cheap(eps=Radius("1/12"), split="validation"),
    ]
    wrong = [names.MISCLASSIFIED, names.FALSIFIED]
    for evaluations in (order, order[::-1]):
        network_dir = add(cheap(test_images=1), *evaluations)
        for evaluation in evaluations:
            table, fresh = (files_of(path, evaluation)[0] for path in (network_dir, evaluated(evaluation)))
            decided = fresh[names.VERDICT].isin([*wrong, names.CERTIFIED])
            assert table.loc[decided, names.VERDICT].equals(fresh.loc[decided, names.VERDICT])
            assert recheck(folder.evaluation_dir(network_dir, evaluation)).problems == []
        shutil.rmtree(network_dir)
