"""What the boundary asks of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lit_align.judges.base import Judge
from lit_align.records import CandidateSet


class BoundaryData(Protocol):
    """What the callback asks of the data module (`AlignmentDataModule` has it all)."""

    judge: Judge | None
    seed: int

    @property
    def held_out(self) -> Sequence[CandidateSet]: ...

    @property
    def restored(self) -> bool: ...

    def sample(
        self, sets: Sequence[CandidateSet], *purpose: str | int, num_candidates: int | None = None, desc: str = ...
    ) -> list[CandidateSet]: ...

    def set_on_policy_share(self, share: float) -> None: ...

    def request_round(self) -> None: ...
