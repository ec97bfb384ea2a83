"""`python -m harness.recheck`: the door to harness/checker/recheck.py."""

from harness.command_line import main

if __name__ == "__main__":
    raise SystemExit(main("recheck"))
