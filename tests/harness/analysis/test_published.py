"""Published numbers beside one's own: those of the same data and exact eps."""

import csv
from pathlib import Path

import pytest
from judged_trials import add, metrics, publish, read_json, text

from baselines.datasets import DATASETS
from harness.analysis import tables
from harness.config.settings import Radius

PROJECT = Path(__file__).resolve().parents[3]


def test_only_published_rows_of_the_same_data_and_exact_eps_are_shown(sweep):
    publish(
        sweep,
        "cifar10,16/510,CNN-7,IBP,51.06,65.03,Shi et al. 2021\n"
        "cifar10,8/255,CerDEQ,,,64.72,abstract\n"
        "cifar10,2/255,CNN-7,IBP,33.16,47.15,wrong eps\n"
        "cifar10,0.0313725,CNN-7,IBP,33.16,47.15,not exact\n"
        "mnist,8/255,CNN-7,IBP,33.16,47.15,wrong data\n",
    )
    for seed in (0, 1):
        add(sweep, metrics(64.9), seed=seed)
    tables.write(sweep)
    objects = read_json(sweep)
    assert [o.get("source") for o in objects] == ["abstract", None, "Shi et al. 2021"]
    assert [o["certified_error"] for o in objects] == [64.72, 64.9, 65.03]
    assert "source" not in objects[1]
    assert objects[0]["standard_error"] is None
    assert "*Shi et al. 2021*" in text(sweep, "md")
    with (sweep / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [set(o) - set(rows[0]) for o in objects] == [set()] * 3
    assert [row["source"] for row in rows] == ["abstract", "", "Shi et al. 2021"]


def test_published_rows_appear_once_though_two_profiles_show_them(sweep):
    publish(sweep, "cifar10,8/255,CerDEQ,,,64.72,abstract\n")
    add(sweep, metrics())
    add(sweep, metrics(), profile="cpu")
    table = tables.build(sweep)
    assert [section.published.count(True) for section in table.sections] == [1, 1]
    assert table.rows["source"].notna().sum() == 1


@pytest.mark.parametrize(("profile", "published_first"), [("full", True), ("cpu", False)])
def test_published_rows_rank_among_full_ones_and_stand_after_reduced_ones(sweep, profile, published_first):
    publish(sweep, "cifar10,8/255,CerDEQ,,,1.5,abstract\n")
    add(sweep, metrics(), profile=profile)
    tables.write(sweep)
    first = read_json(sweep)[0]
    assert ("source" in first) == published_first
    assert bool((sweep / "leaderboard.csv").read_text().splitlines()[1].count("abstract")) == published_first


def test_the_project_s_own_published_numbers_are_the_fallback(tmp_path):
    add(tmp_path / "study", metrics())
    sources = tables.build(tmp_path / "study").rows["source"].dropna()
    assert len(sources) == 11
    assert "Shi et al. 2021 (IBP verifier)" in set(sources)


def test_the_project_s_published_numbers_can_be_right_and_name_their_source():
    with (PROJECT / "results/published.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({tuple(row.items()) for row in rows}) == 29
    for row in rows:
        assert row["dataset"] in DATASETS
        assert Radius(row["eps"])
        assert row["source"]
        assert float(row["standard_error"] or 0) < float(row["certified_error"])


def test_a_faulty_published_csv_is_named(sweep):
    add(sweep, metrics())
    (sweep.parent / "published.csv").write_text("dataset,eps\n")
    with pytest.raises(ValueError, match=r"published\.csv: there is no column model"):
        tables.build(sweep)
    publish(sweep, "cifar10,about 8,CNN-7,IBP,1,2,x\n")
    with pytest.raises(ValueError, match=r"published\.csv: eps: found 'about 8'"):
        tables.build(sweep)
