"""`python -m harness.tables`: the door to harness/launch/tables.py."""

from harness.command_line import main

if __name__ == "__main__":
    raise SystemExit(main("tables"))
