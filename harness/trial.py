"""`python -m harness.trial`: the door to harness/launch/single.py."""

from harness.command_line import main

if __name__ == "__main__":
    raise SystemExit(main("trial"))
