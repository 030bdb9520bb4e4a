"""Verdicts on disk: an SQLite file of keys and numbers that any number of processes may use at once."""

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

_APPLICATION = 0x4C415631  # "LAV1" in the file's header marks a verdict cache of this format
_KEYS_PER_QUERY = 500
_TIMEOUT = 60.0  # seconds to wait for another process's write
_SIDE_FILES = ("-wal", "-shm", "-journal")

_T = TypeVar("_T")


class ForeignFile(sqlite3.DatabaseError):
    """The file is a database of another kind."""


class VerdictStore:
    """Numbers by key. Each write is committed, so a killed process loses and damages nothing.

    A file that is damaged or of another kind is set aside under another name, with a warning, and a new one is
    started. If the file cannot be written (a full disk, a read-only folder), a warning says so once and nothing more
    is stored. A connection lives for one call, so a store may be copied, forked and used in threads.

    Args:
        path: the file; it and its folder are made when first needed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._usable = True
        self._checked = False

    def read(self, keys: Iterable[bytes]) -> dict[bytes, float]:
        """Returns the stored numbers of these keys, without those that are missing."""
        key_list = list(keys)
        return (self._try(lambda connection: _select(connection, key_list)) if key_list else None) or {}

    def write(self, values: Mapping[bytes, float]) -> None:
        """Stores finite numbers by key; a key that is stored already keeps its number."""
        rows = list(values.items())
        if rows:
            self._try(lambda connection: _insert(connection, rows))

    def _try(self, action: Callable[[sqlite3.Connection], _T]) -> _T | None:
        """Returns the action's result; None if the file cannot be used."""
        if not self._usable:
            return None
        try:
            return self._on_valid_file(action)
        except (sqlite3.Error, OSError) as error:
            self._usable = False
            rank_zero_warn(
                f"The verdict cache {self.path} cannot be used ({error}); judging goes on without it, and verdicts "
                "from here on are not kept. It needs a writable place with free space; `path` moves it."
            )
        return None

    def _on_valid_file(self, action: Callable[[sqlite3.Connection], _T]) -> _T:
        inode = _inode(self.path)
        try:
            with self._connected() as connection:
                return action(connection)
        except sqlite3.OperationalError:  # the fault of the disk or folder, not of the file
            raise
        except sqlite3.DatabaseError as error:
            self._set_aside(inode, error)
        with self._connected() as connection:
            return action(connection)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.path, timeout=_TIMEOUT, isolation_level=None)) as connection:
            _prepare(connection)
            if not self._checked:
                (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
                if verdict != "ok":
                    raise sqlite3.DatabaseError(verdict)
                self._checked = True
            yield connection

    def _set_aside(self, inode: int | None, error: sqlite3.DatabaseError) -> None:
        """Renames the file with this inode, unless another process has done so already."""
        with FileLock(f"{self.path}.lock", timeout=_TIMEOUT):
            if _inode(self.path) != inode:
                return
            aside = self.path.with_name(f"{self.path.name}.aside-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
            os.replace(self.path, aside)
            for ending in _SIDE_FILES:
                with suppress(FileNotFoundError):
                    os.replace(f"{self.path}{ending}", f"{aside}{ending}")
        self._checked = False
        fault = "is no verdict cache" if isinstance(error, ForeignFile) else "is damaged"
        rank_zero_warn(f"The verdict cache {self.path} {fault} ({error}); it is now {aside}, and a new one is begun.")


def _prepare(connection: sqlite3.Connection) -> None:
    """Makes a verdict cache of an empty file and leaves a verdict cache as it is.

    Raises:
        ForeignFile: the file is a database of another kind.
    """
    connection.execute("BEGIN")  # one consistent read: another process may be creating the file
    new = _is_new(connection)
    connection.execute("COMMIT")
    if not new:
        return
    with suppress(sqlite3.OperationalError):  # some file systems lack shared memory; the rollback journal works there
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
    values: dict[bytes, float] = {}
    for start in range(0, len(keys), _KEYS_PER_QUERY):
        batch = keys[start : start + _KEYS_PER_QUERY]
        placeholders = ",".join("?" * len(batch))
        values.update(connection.execute(f"SELECT key, value FROM verdicts WHERE key IN ({placeholders})", batch))
    return values


def _insert(connection: sqlite3.Connection, rows: list[tuple[bytes, float]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", rows)
    connection.execute("COMMIT")


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None
