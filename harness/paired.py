"""`python -m harness.paired`: the door to harness/analysis/paired.py."""

from harness.command_line import main

if __name__ == "__main__":
    raise SystemExit(main("paired"))
