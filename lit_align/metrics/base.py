"""Metrics that average one figure per prompt over the prompts."""

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
    """The mean of a figure over prompts. Each prompt weighs the same, however many candidates it has.

    A prompt without the figure (NaN) is not counted; `compute` gives NaN if no prompt has it. The states are sums,
    so a distributed run gives the same mean as a single process.

    Args:
        kwargs: arguments of `torchmetrics.Metric`, such as `sync_on_compute`.
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
        """Counts one figure per prompt, NaN for a prompt without the figure."""
        defined = [figure for figure in figures if not isnan(figure)]
        self.total += sum(defined)
        self.prompts += len(defined)

    def compute(self) -> Tensor:
        """The mean, float64; NaN if no prompt has the figure."""
        return self.total / self.prompts


class CandidateMetric(PromptMean):
    """A figure of a prompt's candidates, averaged over prompts. A subclass defines only :meth:`figure`."""

    @abstractmethod
    def figure(self, candidate_set: CandidateSet) -> float:
        """Computes the figure of one prompt; NaN if it has none."""

    def update(self, sets: Sequence[CandidateSet]) -> None:
        """Counts prompts with their candidates."""
        self.add(self.figure(candidate_set) for candidate_set in sets)
