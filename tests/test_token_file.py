"""Tokens of large data sets lie in a file that is mapped, and are the same there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lit_align.batch import TokenizedPair
from lit_align.data import token_file
from lit_align.data.token_file import TokenFile
from tests.helpers.data_fakes import data_module, pair_rows, stream, write


def make_pairs(count: int) -> list[TokenizedPair]:
    rng = np.random.default_rng(0)

    def ids() -> np.ndarray:
        return rng.integers(0, 300, rng.integers(1, 2000), dtype=np.int32)

    return [TokenizedPair(ids(), ids(), ids(), 0.5, False, ids() if n % 3 == 0 else None) for n in range(count)]


def is_mapped(array: np.ndarray) -> bool:
    base: object = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    return not isinstance(base, np.ndarray)


@pytest.mark.parametrize("tokens_at_once", [1, 5000, 10**9])
def test_pairs_come_back_as_they_were(tokens_at_once: int, tmp_path: Path) -> None:
    pairs = make_pairs(40)
    file = TokenFile(tmp_path / "tokens", tokens_at_once)
    for start in range(0, 40, 7):
        file.add(pairs[start : start + 7])
    found = file.take()
    for pair, expected in zip(found, pairs, strict=True):
        assert (pair.margin, pair.on_policy) == (0.5, False)
        for name in ("prompt", "chosen", "rejected", "target"):
            ids, expected_ids = getattr(pair, name), getattr(expected, name)
            assert (ids is None) == (expected_ids is None)
            if ids is not None:
                np.testing.assert_array_equal(ids, expected_ids)
                assert ids.dtype == np.int32 and is_mapped(ids) == (tokens_at_once < 10**9)
                torch.from_numpy(ids)  # which warns of an array that cannot be written to
    assert not list(tmp_path.glob("tokens/*")), "the file has no name, so that nothing is left of it"


def test_a_run_takes_the_same_pairs_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = write(tmp_path / "train.jsonl", pair_rows(30))
    expected = data_module(train)
    monkeypatch.setattr(token_file.TokenFile.__init__, "__defaults__", (50,))
    monkeypatch.setenv("LIT_ALIGN_CACHE", str(tmp_path / "cache"))
    mapped = data_module(train)
    assert all(is_mapped(pair.chosen) for pair in mapped.train_pairs)
    assert not any(is_mapped(pair.chosen) for pair in expected.train_pairs)
    assert stream(mapped, 20) == stream(expected, 20)
    mapped.load_state_dict(expected.state_dict())
