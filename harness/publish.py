"""`python -m harness.publish`: the door to harness/reports/publish.py."""

from harness.command_line import main

if __name__ == "__main__":
    raise SystemExit(main("publish"))
