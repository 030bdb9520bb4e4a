"""Files and folders that are written whole or not at all, and the hash of a file."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path


@contextmanager
def written_whole(target: Path, shared: bool = False, durable: bool = False) -> Iterator[Path]:
    """Gives a path beside `target` to write a file or a folder to, and renames it to `target` after the block.

    So `target` never holds a part, not even after a kill. After an error it stays as it was. Others may read it as far
    as the process's umask lets them.

    Args:
        target: the file or folder to write; its parent folder is made if it is missing. A folder that is there is
            deleted before the renaming, since a folder cannot be renamed over another.
        shared: gives the path a name of its own, for a target that several processes may write at once. Otherwise
            its name is always the same, so that the next write removes what a kill has left.
        durable: waits until a file is on the disk, so that not even a power cut leaves a part of it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    own = f".{uuid.uuid4().hex}" if shared else ""
    part = target.with_name(f"{target.name}{own}.part")
    _remove(part)
    try:
        yield part
        _open_to_others(part)
        if part.is_dir() and target.exists():
            shutil.rmtree(target)
        if durable:
            _sync(part)
        os.replace(part, target)
        if durable:
            _sync(target.parent)
    finally:
        _remove(part)


def hash_file(path: Path, size: int = 16, prefix: bytes = b"") -> bytes:
    """The BLAKE2b hash of a prefix and a file's content.

    Args:
        path: the file, of any size.
        size: bytes of the hash, 1 to 64.
        prefix: hashed before the content, to tell uses of the same file apart.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, prefix, digest_size=size)).digest()


def _open_to_others(part: Path) -> None:
    """Gives files the modes of the umask: libraries that write through temporary files keep them to their owner."""
    mask = os.umask(0o077)  # only setting it tells what it was
    os.umask(mask)
    for path in (part, *part.rglob("*")):
        if path.is_file():
            path.chmod(path.stat().st_mode | (0o666 & ~mask))


def _sync(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk. Windows cannot do it for folders."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
