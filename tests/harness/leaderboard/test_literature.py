"""Numbers from papers: the project's own list, what is refused, and sentences on the best."""

import csv
from pathlib import Path

import pytest
from made_networks import add, metrics, publish, text

from baselines.datasets import DATASETS
from harness.common.errors import InputError
from harness.common.radius import Radius
from harness.leaderboard.files import write_leaderboard
from harness.leaderboard.literature import ALLOWED, read_literature
from harness.leaderboard.table import build_leaderboard

PROJECT = Path(__file__).resolve().parents[3]


def test_the_project_s_published_numbers_stand_beside_other_sweeps_and_can_be_right(tmp_path):
    add(tmp_path / "study", metrics())
    sources = build_leaderboard(tmp_path / "study").rows["source"].dropna()
    assert len(sources) == 21 and "Shi et al. 2021 (IBP verifier)" in set(sources)
    with (PROJECT / "results/literature.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({tuple(row.items()) for row in rows}) and {*ALLOWED} < {*rows[0]}
    for row in rows:
        assert row["dataset"] in {*DATASETS, "imagenet64"} and Radius(row["eps"]) and row["source"]
        assert float(row["standard_error"] or 0) < float(row["certified_error"]) - float(row["undecided"] or 0)
        assert row["url"].startswith("https://") and int(row["year"]) >= 2018


FIELD = {
    ("cifar10", "2/255"): (33.96, 35.39, 36.77, 37.24, 40.32, 45.59),
    ("cifar10", "8/255"): (58.22, 59.61, 59.94, 64.26, 64.51, 64.56, 65.00, 65.67, 65.75, 65.96),
    ("mnist", "0.1"): (1.57, 1.78, 1.86),
    ("mnist", "0.3"): (5.98, 6.10),
    ("tiny-imagenet", "1/255"): (69.33, 72.28, 73.61),
    ("imagenet64", "1/255"): (86.70, 90.46),
}


@pytest.mark.parametrize("setting", FIELD, ids=str)
def test_the_best_numbers_of_the_field_are_listed(tmp_path, setting):
    rows = read_literature(tmp_path)
    rows = rows[(rows["dataset"] == setting[0]) & (rows["eps"] == setting[1])]
    assert {*FIELD[setting]} <= {*rows["certified_error"]}
    deterministic = rows[rows["guarantee"] != "probabilistic"]
    assert deterministic["certified_error"].min() == min(FIELD[setting])


def test_undecided_images_of_papers_make_a_bracket(tmp_path):
    row = read_literature(tmp_path).query("certified_error == 33.96").iloc[0]
    assert (row["attack_error"], row["undecided"], row["standard_error"]) == (27.38, 6.58, 16.46)


KINDS = ("relu", "guarantee", "extra_data", "verifier", "undecided", "run", "url")
PAPERS = (
    "cifar10,8/255,CNN-7,IBP,50,66,Shi,yes,deterministic,no,IBP,,mean,https://a.org\n"
    "cifar10,8/255,CNN-7,MTL-IBP,48,64,Palma,yes,deterministic,no,complete,1.5,best,\n"
    "cifar10,8/255,SortNet,,,58,Zhang,no,deterministic,generated,Lipschitz,,,\n"
    "cifar10,8/255,smoothed,,,40,Salman,no,probabilistic,unlabelled,sampling,,,\n"
)


def papers_sentences(sweep):
    (section,) = build_leaderboard(sweep).sections
    return section.sentences


def test_the_best_rows_of_papers_are_named_with_what_compares(sweep):
    publish(sweep, PAPERS, *KINDS)
    add(sweep, metrics(), evaluation={"stages": ("ibp", "bab"), "bab_seconds": 1.0})
    best, compared = papers_sentences(sweep)
    for part in ("ReLU network from papers: 64.00 % (62.50 % if ", "any network: 58.00 %", "generated data"):
        assert part in best
    assert compared.startswith("Each row here can be compared with the first only: ")
    write_leaderboard(sweep)
    assert best in text(sweep, "md")


def test_ctrain_s_numbers_say_what_they_were_tuned_on(tmp_path):
    rows = read_literature(tmp_path)
    rows = rows[rows["dataset"] == "cifar10"].dropna(subset="tuned_on")
    best = rows.groupby(["eps", "tuned_on"])["certified_error"].min().to_dict()
    assert best == {
        ("2/255", "test"): 33.96, ("2/255", "validation"): 36.77,
        ("8/255", "test"): 64.26, ("8/255", "validation"): 65.00,
    }  # fmt: skip


@pytest.mark.parametrize("changed", [{}, {"profile": "cpu"}, {"width": 0.5}])
def test_papers_are_compared_with_rows_of_full_size_and_the_same_kind_of_verifier_only(sweep, changed):
    publish(sweep, PAPERS, *KINDS)
    add(sweep, metrics(), **changed)
    assert papers_sentences(sweep)[-1].startswith("No row here can be compared with either: ")


def test_one_paper_is_the_best_of_both(sweep):
    publish(sweep, "cifar10,8/255,CNN-7,IBP,50,66,Shi,yes,,,IBP,,,\n", *KINDS)
    add(sweep, metrics(), evaluation={"stages": ("ibp",)})
    assert papers_sentences(sweep) == [
        "The best number from papers, of a ReLU network: 66.00 %, CNN-7 IBP Shi (IBP verifier).",
        "Each row here can be compared with it: same data set, eps, size and kind of verifier (IBP).",
    ]
    publish(sweep, "")
    assert papers_sentences(sweep) == []


def test_a_faulty_published_csv_is_named(sweep):
    add(sweep, metrics())
    (sweep.parent / "literature.csv").write_text("dataset,eps\n")
    with pytest.raises(ValueError, match=r"literature\.csv: there is no column model"):
        build_leaderboard(sweep)
    publish(sweep, "cifar10,about 8,CNN-7,IBP,1,2,x\n")
    with pytest.raises(ValueError, match=r"literature\.csv: eps: found 'about 8'"):
        build_leaderboard(sweep)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("50,66,x,maybe,,,,,,", "relu: found 'maybe', allowed: yes, no, or nothing"),
        ("50,66,x,,,,,,,javascript:a", "url: found 'javascript:a', allowed: https://..., or nothing"),
        ("50,101,x,,,,,,,", "certified_error: found 101.0, allowed: from 0 to 100"),
        ("50,66,x,,,,,67,,", "standard_error or undecided is above certified_error, 66.0"),
        ("50,66,x,,,,,few,,", "could not convert string to float: 'few'"),
    ],
)
def test_a_value_of_a_paper_that_is_not_allowed_is_named_with_its_line(sweep, cells, message):
    publish(sweep, PAPERS + f"cifar10,8/255,CNN-7,IBP,{cells}\n", *KINDS)
    add(sweep, metrics())
    with pytest.raises(InputError) as caught:
        build_leaderboard(sweep)
    assert "literature.csv: " in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)
    assert "line 6: " in str(caught.value) or "float" in message
