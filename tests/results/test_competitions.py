"""results/COMPETITIONS.md agrees with its tables, and `sweeps/compare_answers.py` counts what contradicts."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from onnx_writer import export_onnx
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
TABLES = sorted((ROOT / "results" / "published" / "competitions").glob("*.csv"))
SOLVED = ["sat", "unsat"]


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_the_page_says_what_the_table_holds(path):
    table = pd.read_csv(path, keep_default_na=False)
    both = table[table["result"].isin(SOLVED) & table["published"].isin(SOLVED)]
    assert len(both) > 5 and (both["result"] == both["published"]).all() and (table["timeout"] == 30).all()
    (line,) = re.findall(rf"^.*\(published/competitions/{path.name}\).*$", page(), re.MULTILINE)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    counts = [len(table), *((table["result"] == answer).sum() for answer in SOLVED), table["result"].isin(SOLVED).sum()]
    assert list(map(int, cells[2:6])) == counts
    assert int(cells[7]) == (table["tools"] > 0).sum() and cells[8] == "0"
    assert int(cells[9]) == round(table["seconds"][table["result"].isin(SOLVED)].sum())


def page():
    return (ROOT / "results" / "COMPETITIONS.md").read_text()


def test_the_page_names_every_table():
    assert len(TABLES) == 6 and all(f"(published/competitions/{path.name})" in page() for path in TABLES)


@pytest.mark.parametrize(("answer", "status"), [("unsat", 0), ("sat", 1)])
def test_contradictions_are_counted(tmp_path, answer, status):
    rows = ["onnx,vnnlib,timeout,result,seconds,branches,detail"]
    rows += [f"/a/net.onnx,/a/p.vnnlib,30,{answer},1.5,3,", "/a/net.onnx,/a/q.vnnlib,30,timeout,30,9,", ""]
    (tmp_path / "results.csv").write_text("\n".join(rows))
    (tmp_path / "one.csv").write_text("set,./net.onnx,./p.vnnlib,1,holds,2\nset,./net.onnx,./q.vnnlib,1,SAT,2\n")
    (tmp_path / "two.csv").write_text("set,./net.onnx,./p.vnnlib,1,timeout,2\nset,./net.onnx,./q.vnnlib,1,UNSAT,2\n")
    command = [sys.executable, ROOT / "sweeps" / "compare_answers.py", "results.csv", "--answers", "one.csv", "two.csv"]
    run = subprocess.run([*command, "--output", "table.csv"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == status and f"contradictions: {status}" in run.stdout
    table = pd.read_csv(tmp_path / "table.csv", keep_default_na=False)
    assert table["published"].tolist() == ["unsat", "disputed"] and table["tools"].tolist() == [1, 2]


@pytest.mark.slow
def test_lists_are_solved_and_wrong_answers_counted(tmp_path):
    pytest.importorskip("onnxruntime")
    export_onnx(nn.Linear(1, 1).eval(), tmp_path / "net.onnx", input_shape=(1,))
    lines = [f"(declare-const {name} Real)" for name in ("X_0", "Y_0")]
    lines += ["(assert (>= X_0 0))", "(assert (<= X_0 1))", "(assert (<= Y_0 100))"]
    (tmp_path / "p.vnnlib").write_text("\n".join(lines))
    (tmp_path / "list.csv").write_text("net.onnx,p.vnnlib,1\n" * 3)
    command = [sys.executable, ROOT / "sweeps" / "verify_lists.py", "list.csv", "--results-dir", "answers"]
    command += ["--timeout", "60", "--every", "2", "--truth", "unsat"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    row = run.stdout.splitlines()[-1].split()
    assert run.returncode == 1, run.stdout + run.stderr
    assert row[1:10] == ["2", "2", "0", "0", "0", "0", "2", "2", "0"]
