"""`python -m harness.board page`: the best of each comparison, and that nothing else is compared."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from made_studies import add, right

from harness.command_line import main
from harness.common.radius import Radius
from harness.leaderboard.table import build_leaderboard
from harness.pretrained.network_file import TRAINED_ELSEWHERE, NetworkFile, Source
from harness.report import board_page
from harness.report.board_page import answers, write_board
from harness.report.board_row import ENTRY, OURS, PAPER
from harness.report.board_rows import read_rows
from harness.settings import Recipe
from harness.storage import entry_check

RESULTS = Path(__file__).parents[3] / "results"
HEADER = "dataset,eps,model,method,standard_error,certified_error,relu,extra_data,verifier,undecided,source,url\n"
SCRIPT = "\"'><script>alert(1)</script>"


def write_papers(results, *lines):
    results.mkdir(exist_ok=True)
    (results / "published.csv").write_text(HEADER + "".join(line + "\n" for line in lines))


def write_entry(results, name="entry", verdicts=None, certified=50.0, **changes):
    """An entry on the first four test images of CIFAR-10, of one seed."""
    errors = {"standard_error": 25.0, "certified_error": certified, "undecided": 25.0}
    steps = [{"name": "schema", "passed": True, "message": "4 rows"}]
    content = {
        "name": name, "title": name, "authors": ["A. Author"], "dataset": "cifar10", "split": "test", "eps": "8/255",
        "images": 10_000, "network_kind": "relu", "verifier_kind": "complete",
        "networks": [{"seed": 0, "reported": errors, "checked": errors}],
        "level": "proofs", "status": "checked", "steps": steps, "checker": "1", "date": "2026-11-28",
    }  # fmt: skip
    check = entry_check.EntryCheck.model_validate(content | changes)
    table = {
        "index": [0, 1, 2, 3], "seed": 0, "label": [3, 8, 8, 0], "prediction": [3, 8, 8, 1], "margin": [2.0, 1, -1, -3],
        "verdict": ["certified", "certified", "timeout", "misclassified"], "stage": "bab", "verifier": "bab",
        "seconds": 1.0,
    }  # fmt: skip
    entry_check.write_check(results / "board" / name, check, pd.DataFrame(table if verdicts is None else verdicts))


def rows_by_name(results):
    return {row.name: row for row in read_rows(results)}


def page_of(results, **options):
    write_board(results, results / "page.html", **options)
    return (results / "page.html").read_text()


@pytest.fixture(scope="module")
def published():
    """The rows of this repository."""
    return read_rows(RESULTS)


def test_the_first_screen_of_this_repository(published):
    best = {(group.dataset, group.eps, group.verifier, group.extra_data): rows for group, rows in answers(published)}
    shown = best["cifar10", Radius("8/255"), "complete", ""]
    assert shown[0][0] == "all, ReLU" and shown[0][1].certified.mean == pytest.approx(64.26)
    assert (shown[0][1].origin, shown[0][1].check, shown[0][1].relu) == (PAPER, "not checked", "yes")
    tuned = {what: row.tuned_on for what, row in shown}
    assert (tuned["all, ReLU"], tuned["validation"]) == ("test split", "validation split")
    assert dict(shown)["validation"].certified.mean == pytest.approx(65.00)
    mnist = dict(best["mnist", Radius("0.3"), "complete", ""])
    assert mnist["all, ReLU"].certified.mean < mnist["ours"].certified.mean == pytest.approx(12.378)
    assert (mnist["ours"].check, mnist["ours"].seeds, mnist["ours"].kind) == ("proved here", "5", "plain CNN")
    linear = dict(best["cifar10", Radius("8/255"), "linear bounds", ""])
    assert (linear["all, ours"].kind, linear["all, ours"].relu, linear["all, ours"].origin) == (
        "equilibrium",
        "no",
        OURS,
    )
    assert linear["ReLU"].certified.mean == pytest.approx(66.38)


def test_a_row_compares_only_with_rows_of_its_data_set_eps_verifier_and_images(published):
    for group, rows in answers(published):
        assert {row.group for _, row in rows} == {group} and group.images == "all test images"
        same = [row.certified.mean for row in published if row.group == group and row.certified]
        assert rows[0][1].certified.mean == min(same)
    ours = [row for row in published if row.origin == OURS]
    assert {"first 4,000 test images", "5,000 held-out images"} <= {row.group.images for row in ours}
    assert all(row.verdicts is not None and "harness.run --here" in row.commands for row in ours)


def test_a_study_lies_in_history_with_the_commands_that_bring_it_back(published):
    row = next(row for row in published if row.source == "length-cifar10")
    assert re.match(r"git archive [0-9a-f]{40} \S*results/published/length-cifar10 \| tar x\n", row.commands)
    assert "harness.recheck" in row.commands


def test_verifiers_and_extra_data_are_never_mixed(tmp_path):
    write_papers(
        tmp_path,
        "cifar10,8/255,CNN-7,IBP,50,66,yes,no,IBP,,A,",
        "cifar10,8/255,CNN-7,SABR,50,65,yes,no,complete,,B,",
        "cifar10,8/255,SortNet,,45,59,no,no,Lipschitz,,C,",
        "cifar10,8/255,SortNet,,45,58,no,generated,Lipschitz,,D,",
        "cifar10,8/255,CerDEQ,,5,10,no,no,,,E,",
    )
    best = {
        rows[0][1].source: (group.verifier, [what for what, _ in rows]) for group, rows in answers(read_rows(tmp_path))
    }
    assert best == {
        "A": ("IBP", ["all, ReLU"]), "B": ("complete", ["all, ReLU"]),
        "C": ("Lipschitz", ["all"]), "D": ("Lipschitz", ["all"]),
    }  # fmt: skip


def test_the_bracket_begins_where_undecided_images_count_as_certified(tmp_path):
    write_papers(tmp_path, "cifar10,2/255,CNN-7,MTL-IBP,16.46,33.96,yes,no,complete,6.58,A,", "mnist,0.3,x,,,6,,,,,B,")
    first, second = read_rows(tmp_path)
    assert first.bracket == pytest.approx((27.38, 33.96)) and second.bracket is None
    assert "27.38 to 33.96" in page_of(tmp_path)


def test_an_entry_shows_what_is_reported_and_what_is_checked(tmp_path):
    write_papers(tmp_path)
    checked = {"standard_error": 25.0, "certified_error": 60.0, "undecided": 35.0}
    networks = [
        {
            "seed": seed,
            "reported": {"standard_error": 25.0, "certified_error": value, "undecided": 0.0},
            "checked": checked,
        }
        for seed, value in enumerate((49.0, 51.0))
    ]
    write_entry(tmp_path, networks=networks, extra_data="generated")
    (row,) = read_rows(tmp_path)
    assert (row.origin, row.check, row.seeds, row.group.extra_data) == (ENTRY, "checked", "2", "generated")
    assert (row.reported.mean, row.reported.deviation, row.checked.mean) == (50, pytest.approx(2**0.5), 60)
    assert row.certified is row.checked and row.bracket == (25, 60)
    page = page_of(tmp_path)
    assert "certified 2" in page and "undecided 1" in page and page.count("<rect") >= 2
    assert "uv run python -m harness.board check entry" in page


@pytest.mark.parametrize("status", ["refused", "refuted"])
def test_a_refuted_entry_stays_visible_and_is_never_the_best(tmp_path, status):
    write_papers(tmp_path, "cifar10,8/255,CNN-7,SABR,50,65,yes,no,complete,,B,")
    write_entry(tmp_path, status=status, level="accuracy")
    assert rows_by_name(tmp_path)["entry"].check == status
    assert [row.name for _, rows in answers(read_rows(tmp_path)) for _, row in rows] == ["CNN-7, SABR"]
    assert f'<span class="mark {status}">{status}</span>' in page_of(tmp_path)


def test_entries_rank_by_checked_numbers_alone(tmp_path):
    """Not by those that they report; an unconfirmed entry is never above another row that has a certified error."""
    write_papers(tmp_path, "cifar10,8/255,CNN-7,SABR,50,65,yes,no,complete,,B,")
    errors = {"standard_error": 5.0, "undecided": 0.0}
    for name, status, reported, checked in (
        ("claims much", "checked", 20.0, 70.0), ("checked", "checked", 66.0, 66.0),
        ("unconfirmed", "unconfirmed", 10.0, 10.0), ("not computed", "unconfirmed", 10.0, None),
    ):  # fmt: skip
        numbers = [{"certified_error": value, **errors} for value in (reported, checked)]
        write_entry(
            tmp_path, name, status=status, networks=[{"seed": 0, "reported": numbers[0], "checked": numbers[1]}]
        )
    ((_, best),) = answers(read_rows(tmp_path))
    assert [(what, row.name) for what, row in best] == [("all, ReLU", "CNN-7, SABR")]
    order = ["CNN-7, SABR", "checked", "claims much", "unconfirmed", "not computed"]
    assert [row.name for row in sorted(read_rows(tmp_path), key=board_page.sort_key)] == order
    (tmp_path / "published.csv").write_text(HEADER)
    for name in ("checked", "claims much"):
        shutil.rmtree(tmp_path / "board" / name)
    ((_, best),) = answers(read_rows(tmp_path))
    assert [row.name for _, row in best] == ["unconfirmed"], "the best where there is nothing else, and marked"


def test_the_kind_of_verifier_of_own_rows_is_that_of_the_leaderboard_s_section(tmp_path):
    write_papers(tmp_path)
    kinds = {("ibp",): "IBP", ("ibp", "crown-ibp"): "linear bounds", ("ibp", "bab"): "complete"}
    for seed, stages in enumerate(kinds):
        add(tmp_path / "study", right(100), seed=seed, evaluation={"stages": stages})
    sections = build_leaderboard(tmp_path / "study").sections
    assert sorted(section.verifier for section in sections) == sorted(kinds.values())
    rows = read_rows(tmp_path)
    assert {row.details["verifier"]: row.group.verifier for row in rows} == {
        "ibp": "IBP", "ibp > crown-ibp": "linear bounds", "ibp > bab (60 s)": "complete"
    }  # fmt: skip


def test_names_of_papers_are_what_their_files_say_whatever_is_in_them(tmp_path):
    """Commas and parentheses, too: they are no marks between parts of a text that is shown."""
    write_papers(tmp_path, "cifar10,8/255,CNN-7,SABR,50,65,yes,no,complete,,Xu and Li (2021),")
    source = Source(method="IBP, then SABR", paper="Li, Xu (2021)", certified_accuracy=40.0)
    file = NetworkFile(file="net.pt", sha256="0" * 64)
    add(tmp_path / "study", right(100), method=TRAINED_ELSEWHERE, checkpoint=file, source=source)
    for epochs in (100, 160):
        add(tmp_path / "study", right(80), options={}, train=Recipe(epochs=epochs, decay_epochs=()))
    rows = {row.name: row for row in read_rows(tmp_path)}
    assert rows["cnn5, IBP, then SABR"].source == "Li, Xu (2021)"
    settings = rows["cnn5, IBP, then SABR"].details["settings"]
    assert settings.startswith("checkpoint=net.pt@") and "train." not in settings
    trained = [row for row in read_rows(tmp_path) if row.name == "cnn5, ibp"]
    assert sorted(row.note for row in trained) == ["train.epochs=100", "train.epochs=160"]
    assert rows["CNN-7, SABR"].source == "Xu and Li (2021)"


def test_entries_on_other_images_are_groups_of_their_own(tmp_path):
    write_papers(tmp_path)
    write_entry(tmp_path, "first", images=4)
    write_entry(tmp_path, "other", images=5)
    images = [row.group.images for row in read_rows(tmp_path)]
    assert images == ["first 4 test images", "5 images of entry other"] and answers(read_rows(tmp_path)) == []


def test_texts_of_others_are_never_markup(tmp_path):
    write_papers(tmp_path, f'cifar10,8/255,"{SCRIPT.replace(chr(34), chr(34) * 2)}",x,,65,yes,no,complete,,<i>,')
    hostile = {"title": SCRIPT, "authors": [SCRIPT], "paper": "javascript:alert(1)", "dataset": SCRIPT}
    write_entry(tmp_path, steps=[{"name": SCRIPT, "passed": None, "message": SCRIPT}], **hostile)
    page = page_of(tmp_path)
    assert page.count("<script") == 1 and "&lt;i&gt;" in page and "<i>" not in page
    assert not re.search(r"href=.?javascript|&#34;'><script", page)
    assert page.count("&lt;script&gt;") >= 5


@pytest.mark.parametrize("content", ["{", '{"name": "x"}', "[" * 100_000, "\x00"])
def test_an_entry_that_cannot_be_read_is_a_row_that_says_so(tmp_path, content):
    write_papers(tmp_path)
    write_entry(tmp_path)
    (tmp_path / "board/entry/check.json").write_text(content)
    (row,) = read_rows(tmp_path)
    assert (row.name, row.check, row.certified) == ("entry", "unreadable", None) and "check.json" in row.note
    assert "unreadable" in page_of(tmp_path)


@pytest.mark.parametrize("cell", ["x", 5, ["x"]])
def test_verdicts_of_other_types_make_an_entry_unreadable(tmp_path, cell):
    write_papers(tmp_path)
    write_entry(tmp_path, verdicts={column: [cell] for column in entry_check.COLUMNS})
    assert rows_by_name(tmp_path)["entry"].check == "unreadable"


def test_sizes_and_characters_of_a_forged_entry_do_no_harm(tmp_path):
    write_papers(tmp_path)
    steps = [{"name": "\x1b[2J\u202e", "passed": True, "message": "\x1b[2J\u202e"}]
    write_entry(tmp_path, images=10**30, paper="https://a.b/\u202e", steps=steps)
    table = entry_check.read_checked_verdicts(tmp_path / "board/entry")
    write_entry(tmp_path, "margins", verdicts=table.assign(margin=[1e308, -1e308, 1.0, 2.0]))
    page = page_of(tmp_path)
    assert not set("\x1b\u202e") & set(page) and '="nan' not in page


def test_test_images_of_a_network_that_held_some_out_are_test_images(tmp_path):
    write_papers(tmp_path)
    for split in ("validation", "test"):
        add(tmp_path / "study", right(100), validation_images=40, evaluation={"split": split})
    assert {row.group.images: row.held_out for row in read_rows(tmp_path)} == {
        "40 held-out images": 40, "all test images": 0,
    }  # fmt: skip


def test_own_sweeps_are_rows_once_with_a_link_to_their_page(tmp_path):
    write_papers(tmp_path)
    add(tmp_path / "published/study", right(150))
    shutil.copytree(tmp_path / "published/study", tmp_path / "copy")
    add(tmp_path / "other", right(100), model="cerdeq")
    (tmp_path / "other/report.html").write_text("")
    (add(tmp_path / "unfinished", right(100)) / "result.json").unlink()
    rows = read_rows(tmp_path)
    assert [(row.source, row.kind) for row in rows] == [("study", "plain CNN"), ("other", "equilibrium")]
    assert 'href="other/report.html"' in page_of(tmp_path)


def test_undecided_images_are_pictures_where_the_data_set_is(tmp_path):
    write_papers(tmp_path)
    write_entry(tmp_path, dataset="digits", images=4)
    page = page_of(tmp_path, data_dir=str(tmp_path))
    pictures = json.loads(re.search(r"const pictures = (\{.*?\}), table", page)[1])
    assert list(pictures) == ["digits 0 2"] and pictures["digits 0 2"].startswith("data:image/png;base64,")
    assert 'data-key="digits 0 2"' in page and "data:image/png" not in page_of(tmp_path)


def test_the_command_writes_the_page_and_refuses_bad_files_in_one_line(tmp_path, capsys):
    write_papers(tmp_path, "cifar10,8/255,CNN-7,SABR,50,65,yes,no,complete,,B,")
    assert main("board", ["page", "--results-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'index.html'}: 1 rows\n" and (tmp_path / "index.html").exists()
    write_papers(tmp_path, "cifar10,9,CNN-7,SABR,50,65,yes,no,complete,,B,")
    assert main("board", ["page", "--results-dir", str(tmp_path)]) == 2
    assert main("board", ["page", "--results-dir", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.parametrize("file", ["evaluations.parquet", "verdicts.parquet"])
def test_a_damaged_study_ends_the_command_in_one_line_that_names_it(tmp_path, capsys, file):
    write_papers(tmp_path)
    study = tmp_path / "published/reduced-mnist"
    shutil.copytree(RESULTS / "published/reduced-mnist", study)
    (study / file).write_bytes((study / file).read_bytes()[:-100])
    assert main("board", ["page", "--results-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert str(study / file) in error and error.count("\n") == 1 and not (tmp_path / "index.html").exists()
