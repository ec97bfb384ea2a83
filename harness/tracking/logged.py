"""Decide whether a store in an SQLite file has everything of a sweep, without MLflow, whose import takes seconds.

A run that has logged everything leaves a digest of the sizes and times of the files that it logged and of the database.
Whoever writes to the database or the results changes one of them. Other stores change without a trace here: each run
asks them.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from harness.analysis.published import published_files
from harness.environment import source_digest
from harness.storage.files import digest_of_states, write_json
from harness.tracking.address import SQLITE, resolve_uri

LOGGED = ".logged"
"""The file in a sweep's directory: the digest, and how to open MLflow."""


@dataclass(frozen=True)
class LoggedMark:
    """The mark of a sweep whose store has everything.

    uri: of the store, as `resolve_uri` takes it. rows: the name of each trial's row, by the trial's key.
    trials: keys of the sweep file's own trials.
    """

    sweep_dir: Path
    uri: str | None
    rows: dict[str, str]
    trials: Collection[str]

    def read(self) -> str | None:
        """Return how to open MLflow if the store has everything, None if it may lack something."""
        try:
            content = json.loads((self.sweep_dir / LOGGED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        is_current = isinstance(content, dict) and content.get("digest") == self._digest()
        return str(content["how to open"]) if is_current else None

    def write(self, how_to_open: str) -> None:
        """Record that the store has everything, if it is an SQLite file."""
        if resolve_uri(self.uri).startswith(SQLITE):
            write_json(self.sweep_dir / LOGGED, {"digest": self._digest(), "how to open": how_to_open})

    def _digest(self) -> str:
        stores = resolve_uri(self.uri), resolve_uri(None)  # `how_to_open` compares them
        made_by = source_digest(), version("mlflow"), version("pandas")
        return digest_of_states((*stores, *made_by, sorted(self.rows.items()), sorted(self.trials)), self._files())

    def _files(self) -> Iterator[Path]:
        """Yield the files that are logged, those that tables are made from, and the database with its log."""
        yield from (self.sweep_dir / "trials").rglob("*")
        yield from self.sweep_dir.glob("leaderboard.*")
        yield from published_files(self.sweep_dir)
        database = resolve_uri(self.uri).removeprefix(SQLITE)
        yield from (Path(database), Path(f"{database}-wal"))
