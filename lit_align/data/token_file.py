"""Tokens of many pairs in a file that is mapped into memory: the system drops and reads its parts as it needs."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from lit_align.batch import TokenizedPair

_TOKENS_AT_ONCE = 2**22
"""Tokens that are kept in memory before they are written: 16 MiB. Fewer in all stay there."""


class TokenFile:
    """Gathers pairs; where they are many, their tokens lie in a file without a name, which ends with the process.

    Args:
        folder: for the file; it is made when it is needed.
        tokens_at_once: how many tokens are kept in memory before they are written.
    """

    def __init__(self, folder: Path, tokens_at_once: int = _TOKENS_AT_ONCE) -> None:
        self._folder = folder
        self._tokens_at_once = tokens_at_once
        self._written: list[TokenizedPair] = []
        self._waiting: list[TokenizedPair] = []
        self._waiting_tokens = 0
        self._file: IO[bytes] | None = None

    def add(self, pairs: Iterable[TokenizedPair]) -> None:
        """Takes pairs."""
        for pair in pairs:
            self._waiting.append(pair)
            self._waiting_tokens += sum(map(len, _sides(pair)))
        if self._waiting_tokens >= self._tokens_at_once:
            self._write()

    def take(self) -> list[TokenizedPair]:
        """All pairs, in the order in which they came."""
        if self._file is not None:
            self._write()
        return self._written + self._waiting

    def _write(self) -> None:
        if not self._waiting:
            return
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - it ends with the process
        file = self._file
        start = -(-file.tell() // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        file.seek(start)
        tokens = np.concatenate(list(chain.from_iterable(map(_sides, self._waiting))))
        file.write(tokens.data)
        file.flush()
        mapped = mmap.mmap(file.fileno(), tokens.nbytes, access=mmap.ACCESS_COPY, offset=start)
        self._written += _with_tokens(self._waiting, np.frombuffer(mapped, dtype=np.int32))
        self._waiting = []
        self._waiting_tokens = 0


def _sides(pair: TokenizedPair) -> list[np.ndarray]:
    return [pair.prompt, pair.chosen, pair.rejected, *([] if pair.target is None else [pair.target])]


def _with_tokens(pairs: Iterable[TokenizedPair], tokens: np.ndarray) -> Iterable[TokenizedPair]:
    """The pairs with the same tokens, as views of one array that holds them one after another."""
    start = 0
    for pair in pairs:
        ends = start + np.cumsum([len(ids) for ids in _sides(pair)])
        views: list[Any] = [tokens[end - len(ids) : end] for end, ids in zip(ends, _sides(pair), strict=True)]
        yield replace(pair, **dict(zip(("prompt", "chosen", "rejected", "target"), views, strict=False)))
        start = int(ends[-1])
