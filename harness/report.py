"""`python -m harness.report`: the door to harness/reports/report.py."""

from harness.command_line import main

if __name__ == "__main__":
    raise SystemExit(main("report"))
