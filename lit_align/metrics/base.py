"""The mean over prompts of a figure that each prompt has."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from math import isnan
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_align.records import CandidateSet


class PromptMean(Metric):
    """The mean over prompts of one figure a prompt. Each prompt weighs the same, however many candidates it has.

    A prompt without the figure (NaN) counts nowhere; `compute` gives NaN where no prompt has it. The states are sums,
    so the ranks of a distributed run reduce to what one process would have counted.

    Args:
        kwargs: of torchmetrics, such as `sync_on_compute`.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better: bool | None = None
    total: Tensor
    prompts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("prompts", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def add(self, figures: Iterable[float]) -> None:
        """Counts the figures of some prompts, NaN where a prompt has none."""
        known = [figure for figure in figures if not isnan(figure)]
        self.total += sum(known)
        self.prompts += len(known)

    def compute(self) -> Tensor:
        """The mean, float64; NaN where no prompt has the figure."""
        return self.total / self.prompts


class CandidateMetric(PromptMean):
    """A figure of the candidates of a prompt, averaged over prompts. A subclass gives :meth:`figure` alone."""

    @abstractmethod
    def figure(self, one: CandidateSet) -> float:
        """The figure of one prompt; NaN where it has none."""

    def update(self, sets: Sequence[CandidateSet]) -> None:
        """Counts some prompts with their candidates."""
        self.add(self.figure(one) for one in sets)
