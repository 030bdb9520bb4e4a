"""Verdicts on disk: one SQLite file of keys and numbers that any number of processes may use at once."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_warn

_APPLICATION = 0x4C415631  # "LAV1", in the file's header: this is a verdict cache of this format
_AT_ONCE = 500  # keys in one query
_PATIENCE = 60.0  # seconds to wait for another process's write
_SIDE_FILES = ("-wal", "-shm", "-journal")

_T = TypeVar("_T")


class ForeignFile(sqlite3.DatabaseError):
    """The file is a database of something else."""


class VerdictStore:
    """Numbers by key. What was written is committed: a killed process loses and damages nothing.

    A file that is damaged or something else's is set aside under another name, with a warning, and a new one is
    begun. Where nothing can be kept (a full disk, a place that is read-only) it warns once and keeps nothing more.
    A connection lives for one call, so a store may be copied, forked and used in threads.

    Args:
        path: the file; it and its folder come to be when they are needed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._usable = True
        self._sound = False

    def read(self, keys: Iterable[bytes]) -> dict[bytes, float]:
        """The known ones of these keys."""
        wanted = list(keys)
        found = self._try(lambda connection: _select(connection, wanted)) if wanted else None
        return {} if found is None else found

    def write(self, values: Mapping[bytes, float]) -> None:
        """Keeps finite numbers by key; what is known already stays as it is."""
        rows = list(values.items())
        if rows:
            self._try(lambda connection: _insert(connection, rows))

    def _try(self, action: Callable[[sqlite3.Connection], _T]) -> _T | None:
        """The action's result; None where the file cannot be used."""
        if not self._usable:
            return None
        try:
            return self._on_sound_file(action)
        except (sqlite3.Error, OSError) as error:
            self._usable = False
            rank_zero_warn(
                f"The verdict cache {self.path} cannot be used ({error}); judging goes on without it, and verdicts "
                "from here on are not kept. It needs a writable place with free space; `path` moves it."
            )
        return None

    def _on_sound_file(self, action: Callable[[sqlite3.Connection], _T]) -> _T:
        seen = _inode(self.path)
        try:
            with self._connected() as connection:
                return action(connection)
        except sqlite3.OperationalError:  # the place's fault, not the file's
            raise
        except sqlite3.DatabaseError as error:
            self._set_aside(seen, error)
        with self._connected() as connection:
            return action(connection)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)) as connection:
            _prepare(connection)
            if not self._sound:
                (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
                if verdict != "ok":
                    raise sqlite3.DatabaseError(verdict)
                self._sound = True
            yield connection

    def _set_aside(self, seen: int | None, error: sqlite3.DatabaseError) -> None:
        """Renames the file, unless another process did so since it was `seen`."""
        with FileLock(f"{self.path}.lock", timeout=_PATIENCE):
            if _inode(self.path) != seen:
                return
            aside = self.path.with_name(f"{self.path.name}.aside-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
            os.replace(self.path, aside)
            for ending in _SIDE_FILES:
                with suppress(FileNotFoundError):
                    os.replace(f"{self.path}{ending}", f"{aside}{ending}")
        self._sound = False
        what = "is no verdict cache" if isinstance(error, ForeignFile) else "is damaged"
        rank_zero_warn(f"The verdict cache {self.path} {what} ({error}); it is now {aside}, and a new one is begun.")


def _prepare(connection: sqlite3.Connection) -> None:
    """Makes a new file a verdict cache, and leaves any other as it is.

    Raises:
        ForeignFile: where the file holds something else.
    """
    connection.execute("BEGIN")  # one look: another process may be making the file
    new = _is_new(connection)
    connection.execute("COMMIT")
    if not new:
        return
    with suppress(sqlite3.OperationalError):  # some places know no shared memory; the rollback journal serves there
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    if _is_new(connection):  # no other process was faster
        connection.execute("CREATE TABLE verdicts (key BLOB PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID")
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
    connection.execute("COMMIT")


def _is_new(connection: sqlite3.Connection) -> bool:
    """Whether the file is empty; False for a verdict cache."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application == _APPLICATION:
        return False
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]
    if application != 0 or tables:
        raise ForeignFile(f"it holds {', '.join(tables) or 'another format'}")
    return True


def _select(connection: sqlite3.Connection, keys: list[bytes]) -> dict[bytes, float]:
    found: dict[bytes, float] = {}
    for start in range(0, len(keys), _AT_ONCE):
        some = keys[start : start + _AT_ONCE]
        places = ",".join("?" * len(some))
        found.update(connection.execute(f"SELECT key, value FROM verdicts WHERE key IN ({places})", some))
    return found


def _insert(connection: sqlite3.Connection, rows: list[tuple[bytes, float]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", rows)
    connection.execute("COMMIT")


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None
