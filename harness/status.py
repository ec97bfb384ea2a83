"""`python -m harness.status`: the door to harness/launch/status.py."""

from harness.command_line import main

if __name__ == "__main__":
    raise SystemExit(main("status"))
