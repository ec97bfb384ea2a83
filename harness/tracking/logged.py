"""Decide whether a store in an SQLite file has everything of a sweep, without MLflow, whose import takes seconds.

A run that has logged everything leaves a digest of the sizes and times of the files that it logged and of the database.
Whoever writes to the database or the results changes one of them. Other stores change without a trace here: each run
asks them.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from harness.leaderboard.literature import literature_files
from harness.machine.environment import source_digest
from harness.storage.files import DamagedFileError, digest_of_states, parse_json, write_json
from harness.tracking.address import SQLITE, resolve_uri

LOGGED = ".logged"
"""The file in a sweep's directory: the digest, and how to open MLflow."""
_NAMES = _DIGEST, _OPEN = "digest", "how to open"


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
            content = parse_json(self.sweep_dir / LOGGED, lambda content: {name: content[name] for name in _NAMES})
        except DamagedFileError:
            return None
        return str(content[_OPEN]) if content[_DIGEST] == self._digest() else None

    def write(self, how_to_open: str) -> None:
        """Record that the store has everything, if it is an SQLite file."""
        if resolve_uri(self.uri).startswith(SQLITE):
            write_json(self.sweep_dir / LOGGED, {_DIGEST: self._digest(), _OPEN: how_to_open})

    def _digest(self) -> str:
        stores = resolve_uri(self.uri), resolve_uri(None)  # `how_to_open` compares them
        made_by = source_digest(), version("mlflow"), version("pandas")
        return digest_of_states((*stores, *made_by, sorted(self.rows.items()), sorted(self.trials)), self._files())

    def _files(self) -> Iterator[Path]:
        """Yield the files that are logged, those that tables are made from, and the database with its log."""
        yield from (self.sweep_dir / "trials").rglob("*")
        yield from self.sweep_dir.glob("leaderboard.*")
        yield from literature_files(self.sweep_dir)
        database = resolve_uri(self.uri).removeprefix(SQLITE)
        yield from (Path(database), Path(f"{database}-wal"))
