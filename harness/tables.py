"""`python -m harness.tables`: the door to harness/analysis/tables.py."""

from harness.command_line import main

if __name__ == "__main__":
    raise SystemExit(main("tables"))
