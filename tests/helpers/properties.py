"""What the tests of properties draw: texts, chats, rows and pairs, the same ones in every run.

`EXAMPLES=20 pytest tests/test_properties_*.py` draws twenty times as many, and others in each run.
"""

from __future__ import annotations

import datetime
import math
import os
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from lit_align.batch import PairReference, TokenizedPair
from lit_align.rows.turns import ROLES

_TIMES = int(os.environ.get("EXAMPLES", "1"))
"""Times as many examples as in the test suite; above 1 other ones in each run."""


def examples(count: int) -> settings:
    """How many examples a test draws."""
    return settings(max_examples=count * _TIMES, derandomize=_TIMES == 1, deadline=None, database=None)


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)
"""Unicode texts that say something."""
SCORES = st.floats(-1e6, 1e6) | st.integers(-10, 10)
_NUMBERS = st.integers() | st.just(10**400) | st.floats() | st.booleans()
_LEAVES = st.none() | _NUMBERS | st.text(max_size=8) | st.sampled_from([*ROLES, "[" * 9999, "1" * 5000, "\ud800"])
_ODD = st.sampled_from([b"bytes", math.nan, np.float32(1), np.arange(2), {1}, object(), datetime.date(2026, 1, 1)])
_NAMES = st.sampled_from(["role", "content", "text", "type", "score", "model", "tool_calls", "name"])
VALUES = st.recursive(
    _LEAVES | _ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES | st.integers(), inner, max_size=4),
    max_leaves=8,
)
"""What a row may hold under a name, sense or nonsense."""


def messages(*roles: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    """The turns of a chat."""
    return st.tuples(*(st.fixed_dictionaries({"role": st.just(role), "content": TEXTS}) for role in roles)).map(list)


CHATS = st.sampled_from([("user",), ("system", "user"), ("user", "assistant", "user")]).flatmap(
    lambda roles: messages(*roles)
)
"""Prompts as messages."""

IDS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6).map(lambda ids: np.array(ids, dtype=np.int32))


@st.composite
def tokenized_pairs(draw: st.DrawFn) -> TokenizedPair:
    """Pairs with and without a target, a margin and a reference."""
    chosen, rejected = draw(IDS), draw(IDS)
    logps = [np.array(draw(_logps(len(ids))), dtype=np.float32) for ids in (chosen, rejected)]
    reference = draw(st.none() | st.integers(0, 9).map(lambda version: PairReference(logps[0], logps[1], version)))
    margin = draw(st.just(math.nan) | st.floats(0, 1e6))
    return TokenizedPair(draw(IDS), chosen, rejected, margin, draw(st.booleans()), draw(st.none() | IDS), reference)


def _logps(count: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(-1e3, 0, width=32), min_size=count, max_size=count)
