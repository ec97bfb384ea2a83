"""`python -m harness.certify`: the door to harness/launch/certify.py."""

from harness.command_line import main

if __name__ == "__main__":
    raise SystemExit(main("certify"))
