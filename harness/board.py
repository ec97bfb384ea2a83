"""The board: check entries of others; write all results as one page.

An entry is a folder with entry.yaml, networks, and a table of verdicts for each. `check` says for each step how far the
entry comes, and writes the result to results/board/<name of the folder>/, never into the entry. Nothing in an entry is
run. See docs/enter-the-board.md.

`page` writes one page that opens offline: the best certified errors of each data set, eps and kind of verifier, then
all rows: own sweeps below results/ and results/published/, entries as they were checked, and numbers of papers.
"""

import argparse
import os
import re
import secrets
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import command_line
from harness.command_line import FAILED, OK, add_data_dir, add_results_dir
from harness.common.errors import require
from harness.common.terminal import say

if TYPE_CHECKING:
    from harness.storage.entry_check import CheckStep, EntryCheck

# Torch takes seconds to import: what needs it is imported late.
_LONGEST = 1e6  # seconds of a step
_RESULTS = {True: "passed", False: "FAILED", None: "undecided"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_check(commands)
    _add_page(commands)


def main(options: argparse.Namespace) -> int:
    """Run the subcommand and return its exit status. Raises InputError for wrong input."""
    status: int = options.run(options)
    return status


def _add_check(commands: Any) -> None:
    check = commands.add_parser("check", help="check an entry", description="Check an entry, step by step.")
    check.add_argument("entry", type=Path, metavar="DIR", help="the entry's folder, which names it")
    add_results_dir(check)
    nonce = "text that nobody knew when the entry was made: it draws the sample; default: drawn at random"
    check.add_argument("--nonce", metavar="TEXT", help=nonce)
    check.add_argument("--seconds", type=float, default=3600.0, help="limit of each step; default: 3600")
    witness = "a safetensors file: adversarial images of claimed ones, float32 [C, H, W], named <seed>/<image>"
    check.add_argument("--witness", type=Path, metavar="FILE", help=witness)
    add_data_dir(check)
    check.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    """Check an entry; return FAILED if it is refused or refuted. Raises InputError, and nothing is written."""
    entry, seconds, nonce = options.entry.resolve(), options.seconds, options.nonce or secrets.token_hex(16)
    name = entry.name
    require("DIR", str(options.entry), (entry / "entry.yaml").exists(), "a folder with entry.yaml")
    allowed = "a folder named by up to 80 letters, digits, '.', '_' and '-'"
    require("DIR", name, re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name) is not None, allowed)
    require("--seconds", seconds, 0 < seconds <= _LONGEST, f"above 0, at most {_LONGEST:g}")
    require(
        "--nonce", nonce, nonce.isascii() and nonce.isprintable() and len(nonce) <= 200, "up to 200 ASCII characters"
    )
    from safetensors.numpy import save_file

    from harness.checker.evaluation import load_hashed
    from harness.checker.images import prover_of
    from harness.checker.proofs.certificates import read_tensors
    from harness.entries.check import EntryChecker
    from harness.storage import entry_check
    from harness.storage.files import write_atomically

    directory = entry_check.check_dir(options.results_dir, name)
    hits, sent = read_tensors(directory / entry_check.HITS), {}
    if options.witness is not None:
        require("--witness", str(options.witness), options.witness.is_file(), "a safetensors file")
        sent = read_tensors(options.witness)
    load_data = partial(load_hashed, data_dir=options.data_dir)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # that a step may add
    checker = EntryChecker(entry, nonce, load_data, prover_of, seconds, memory, hits, sent)
    check, verdicts = checker.check(_print_step)
    if checker.hits:
        write_atomically(directory / entry_check.HITS, lambda path: save_file(checker.hits, path))
    _print_result(check)
    if check.status == "refused" and entry_check.is_refuted(directory):
        say("an earlier check has refuted this entry; that check stays")
        return FAILED
    entry_check.write_check(directory, check, verdicts)
    say(directory / entry_check.CHECK)
    return FAILED if check.status in ("refused", "refuted") else OK


def _add_page(commands: Any) -> None:
    page = commands.add_parser("page", help="write all results as one page", description="Write all results as a page.")
    add_results_dir(page)
    page.add_argument(
        "--output", type=Path, metavar="FILE", help="the page; default: index.html in the results' folder"
    )
    page.add_argument("--data-dir", help="where data sets lie: undecided images are shown; default: none are")
    page.set_defaults(run=_page)


def _page(options: argparse.Namespace) -> int:
    """Write the page. Raises InputError."""
    from harness.report.board_page import INDEX, write_board

    directory = options.results_dir
    require("--results-dir", str(directory), directory.is_dir(), "a folder of results")
    path = options.output or directory / INDEX
    rows = write_board(directory, path, options.data_dir)
    say(f"{path}: {rows} rows")
    return OK


def _print_step(step: "CheckStep") -> None:
    say(f"{step.name:10} {_RESULTS[step.passed]:9} {step.message}")


def _print_result(check: "EntryCheck") -> None:
    unranked = f" on {check.images:,} test images alone, so it is not ranked" if check.status == "partial" else ""
    say(f"{check.status}: {check.name}, checked up to {check.level}{unranked}; nonce {check.nonce}")


if __name__ == "__main__":
    raise SystemExit(command_line.main("board"))
