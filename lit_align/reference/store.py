"""Reference log-probs on disk: one float32 for each completion token. `docs/reference_store.md` has the format."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from lit_align.files import written_whole

FORMAT = "lit-align reference log-probs, version 1"
MANIFEST = "manifest.json"
_SHARD = re.compile(r"[0-9a-f]{32}\.safetensors")
_KEY_BYTES = 16


def completion_key(prompt: np.ndarray, completion: np.ndarray) -> bytes:
    """The 16 bytes under which a completion's log-probs are kept: a hash of the token ids and nothing else.

    Args:
        prompt: [P] int32 ids.
        completion: [C] int32 ids.
    """
    digest = hashlib.blake2b(len(prompt).to_bytes(8, "little"), digest_size=_KEY_BYTES)
    digest.update(prompt.astype("<i4", copy=False).tobytes())
    digest.update(completion.astype("<i4", copy=False).tobytes())
    return digest.digest()


class ReferenceStore:
    """The log-probs that one reference gives to completions, in a folder of its own.

    Files are written whole and never changed, under names made of their content's hash, so any number of
    processes may read and write at once, and a damaged file is known by its name. A file that cannot be
    used is left out with a warning.

    Args:
        root: the folder for the stores of all references.
        identity: what the reference's log-probs depend on, as plain JSON values.
    """

    def __init__(self, root: Path, identity: Mapping[str, Any]) -> None:
        self.identity = dict(identity)
        text = json.dumps([FORMAT, self.identity], sort_keys=True)
        self.id = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        self.folder = root / self.id

    def read(self, lengths: Mapping[bytes, int]) -> dict[bytes, np.ndarray]:
        """The stored log-probs of completions, by key.

        Args:
            lengths: the number of tokens of each completion, by :func:`completion_key`.
        """
        self._check_manifest()
        stored: dict[bytes, np.ndarray] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                stored.update(self._read_shard(path, lengths))
            except FileNotFoundError:
                continue  # another process has removed it, damaged
            except (OSError, ValueError) as error:
                warnings.warn(
                    f"The stored reference log-probs in {path} are not used, what is missing is computed anew: {error}",
                    stacklevel=2,
                )
        return stored

    def write(self, values: Mapping[bytes, np.ndarray]) -> str | None:
        """Adds log-probs, each [C] float32, in one file. Those that are not finite are not kept.

        Returns:
            The file's name; None if there was nothing to keep.

        Raises:
            OSError: if the folder cannot be written.
        """
        kept = {key: value for key, value in values.items() if np.isfinite(value).all()}
        if not kept:
            return None
        tensors: dict[str, np.ndarray] = {
            "keys": np.frombuffer(b"".join(kept), dtype=np.uint8).reshape(-1, _KEY_BYTES),
            "lengths": np.array([len(value) for value in kept.values()], dtype=np.int32),
            "logps": np.concatenate(list(kept.values())).astype(np.float32, copy=False),
        }
        content = save(tensors, metadata={"format": FORMAT, "reference": self.id})
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / MANIFEST).exists():
            self._write_manifest()
        name = f"{_checksum(content)}.safetensors"
        _write(self.folder / name, content)
        return name

    def _read_shard(self, path: Path, lengths: Mapping[bytes, int]) -> dict[bytes, np.ndarray]:
        """The values that one file has of completions.

        Raises:
            ValueError: if it is damaged, or no file of this store.
        """
        content = path.read_bytes()
        if not _SHARD.fullmatch(path.name):
            raise ValueError("its name is none that this store gives")
        if _checksum(content) != path.stem:
            path.unlink(missing_ok=True)  # our own file, and of no use to anyone
            raise ValueError("its content does not match the checksum in its name (torn or changed); it was removed")
        metadata = _metadata(content)
        if metadata != {"format": FORMAT, "reference": self.id}:
            raise ValueError(f"it belongs to another store: {metadata}")
        return _values(content, lengths)

    def _check_manifest(self) -> None:
        """Writes the manifest anew if it is damaged or another store's."""
        path = self.folder / MANIFEST
        if not path.exists():
            return
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            content = str(error)
        if content != self._manifest():
            warnings.warn(f"{path} is damaged or another store's and is written anew: {content}", stacklevel=3)
            with suppress(OSError):  # it only tells people what the folder holds
                self._write_manifest()

    def _manifest(self) -> dict[str, Any]:
        return {"format": FORMAT, "reference": self.identity}

    def _write_manifest(self) -> None:
        _write(self.folder / MANIFEST, (json.dumps(self._manifest(), indent=2) + "\n").encode())


def _checksum(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _metadata(content: bytes) -> Any:
    """The strings in a safetensors header, which `safetensors.numpy.load` does not give."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header.get("__metadata__")


def _values(content: bytes, wanted_lengths: Mapping[bytes, int]) -> dict[bytes, np.ndarray]:
    try:
        tensors = load(content)
        keys = tensors["keys"]
        lengths = tensors["lengths"]
        logps = tensors["logps"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"it lacks a tensor: {error}") from error
    ends = np.cumsum(lengths)
    values = {}
    for row, length, end in zip(keys, lengths.tolist(), ends.tolist(), strict=True):
        if wanted_lengths.get(key := row.tobytes()) == length:
            values[key] = logps[end - length : end].copy()
    return values


def _write(path: Path, content: bytes) -> None:
    """Writes a file, which other processes may write at the same time."""
    with written_whole(path, shared=True) as part, part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
