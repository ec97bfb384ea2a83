"""`python -m harness` lists the commands; `python -m harness NAME ...` is `python -m harness.NAME ...`."""

import sys

from harness import command_line
from harness.common.terminal import say


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the first argument names; returns its exit status."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    command_line.exit_if_removed(name)
    if name in command_line.COMMANDS:
        return command_line.main(name, rest)
    say("usage: python -m harness COMMAND ...; COMMAND --help lists its options\n")
    say(*(f"  {command:10} {summary}" for command, summary in command_line.COMMANDS.items()))
    if name in ("-h", "--help"):
        return command_line.OK
    say(f"\nerror: there is no command {name!r}", file=sys.stderr)
    return command_line.BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
