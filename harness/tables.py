"""`python -m harness.tables results/<sweep>`: write a sweep's leaderboard as Markdown, LaTeX, CSV and JSON.

Markdown also shows notes, warnings and trials without a result.
"""

import argparse

from harness import command_line
from harness.command_line import OK, add_sweep_directory
from harness.common.terminal import new_console
from harness.leaderboard.files import print_leaderboard, write_leaderboard


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_sweep_directory(parser)


def main(options: argparse.Namespace) -> int:
    """Return the exit status. Raises InputError where no table can be made."""
    print_leaderboard(*write_leaderboard(options.directory), new_console())
    return OK


if __name__ == "__main__":
    raise SystemExit(command_line.main("tables"))
