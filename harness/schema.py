"""Print the JSON schema of sweep files, by which editors complete and check them.

`sweeps/schema.json` is what this prints. `python -m harness.run` also checks whether values fit together.
"""

import argparse
import json

from harness import command_line
from harness.command_line import OK
from harness.common.terminal import say


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments: it has none."""


def main(options: argparse.Namespace) -> int:
    """Run the command and return the exit status."""
    from harness.sweep.schema import sweep_schema  # imports torch

    say(json.dumps(sweep_schema(), indent=1))
    return OK


if __name__ == "__main__":
    raise SystemExit(command_line.main("schema"))
