"""Compare answers of `harness.verify` with those that VNN-COMP published.

    python sweeps/compare_answers.py RESULTS.csv --answers TOOL.csv [TOOL.csv ...] --output TABLE.csv

TOOL.csv: the results of one tool, from the repositories vnncomp2021_results and later. TABLE.csv has a row for each
instance: our answer, the published one, and how many tools found it. If an answer contradicts a published one, the exit
status is 1.
"""

import argparse
from pathlib import Path

import pandas as pd

_WORDS = {"holds": "unsat", "unsat": "unsat", "violated": "sat", "sat": "sat"}
_KEY = ["network", "property"]


def main() -> int:
    """Write the table and print how many instances each tool solved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="RESULTS.csv", help="written by harness.verify")
    parser.add_argument("--answers", type=Path, nargs="+", required=True, metavar="TOOL.csv", help="published answers")
    parser.add_argument("--output", type=Path, required=True, metavar="TABLE.csv", help="the table to write")
    options = parser.parse_args()
    ours = pd.read_csv(options.results, keep_default_na=False)
    ours = ours.assign(network=base_names(ours["onnx"]), property=base_names(ours["vnnlib"]))
    answers = published_answers(options.answers).merge(ours[_KEY])
    table = ours[[*_KEY, "timeout", "result", "seconds", "branches"]].merge(agreed_answers(answers), "left", _KEY)
    table = table.fillna({"published": "", "tools": 0}).astype({"tools": int})
    table.to_csv(options.output, index=False)
    both = table[is_solved(table["result"]) & is_solved(table["published"])]
    wrong = both[both["result"] != both["published"]]
    print(f"{len(table)} instances; solved here: {is_solved(table['result']).sum()}")
    print("published: " + ", ".join(f"{tool} {count}" for tool, count in answers["tool"].value_counts().items()))
    print(f"by any of them: {(table['tools'] > 0).sum()}; contradictions: {len(wrong)}")
    return int(len(wrong) > 0)


def published_answers(paths: list[Path]) -> pd.DataFrame:
    """Return a row for each answer sat or unsat of a tool: tool, network, property, published."""
    columns = ["category", "network", "property", "prepare", "word", "seconds"]
    tables = [pd.read_csv(path, names=columns, keep_default_na=False).assign(tool=path.stem) for path in paths]
    rows = pd.concat(tables, ignore_index=True)
    rows = rows.assign(published=rows["word"].str.lower().map(_WORDS)).dropna(subset="published")
    rows["network"], rows["property"] = base_names(rows["network"]), base_names(rows["property"])
    return rows[["tool", *_KEY, "published"]]


def agreed_answers(answers: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each instance: network, property, published, tools.

    published: sat or unsat, or "disputed" if the tools disagree. tools: how many solved it.
    """
    groups = answers.groupby(_KEY)["published"].agg(["nunique", "first", "size"])
    groups["published"] = groups["first"].where(groups["nunique"] == 1, "disputed")
    return groups.rename(columns={"size": "tools"}).reset_index()[[*_KEY, "published", "tools"]]


def is_solved(answers: pd.Series) -> pd.Series:
    """Return which of the answers are sat or unsat."""
    return answers.isin(["sat", "unsat"])


def base_names(paths: pd.Series) -> pd.Series:
    """Return the file names at the ends of paths."""
    return paths.str.rsplit("/", n=1).str[-1]


if __name__ == "__main__":
    raise SystemExit(main())
