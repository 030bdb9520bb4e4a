"""An anytime-valid test of "the score is 0.5", or another threshold, by betting."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_align.boundary.result import BOUNDARY
from lit_align.records import Stage

Array = NDArray[np.float64]
_BETS: Array = (np.arange(32) + 0.5) / 32
_LOG_WEIGHTS: Array = np.log((1 - _BETS) / np.sum(1 - _BETS))
_HALVINGS = 60


class SequentialTest:
    """Tells on which side of 0.5, or another threshold, the mean share lies, after any number of prompts.

    A gambler bets on each side of a mean m that is claimed. Against "the mean is at most m" a fixed share c
    of the capital goes on each prompt, which a share x multiplies by 1 + c (x / m - 1); against "at least m"
    the mirror image. If the claim holds, neither capital grows on average, whatever the distribution of the
    shares, so the chance that one ever reaches 2 / alpha is at most alpha / 2 (Ville's inequality). The
    capital is a mixture over 32 values of c in (0, 1), weighted by 1 - c: near 0.5 it takes small bets, far
    from it bold ones.

    - `interval` holds each m against which neither capital has reached 2 / alpha: a confidence sequence,
      which covers the true mean at *all* times at once with probability at least 1 - alpha. It shrinks
      with n, but a later interval need not lie inside an earlier one.
    - `decided` says that the threshold is outside of it. The chance of ever being decided on the wrong side is at
      most alpha / 2.

    Both capitals depend only on the prompts, not on their order or on how they were split into batches.

    What is assumed: the prompts are drawn at random (independently, or without replacement from a pool that
    was) from the population of prompts whose mean share is asked for. Shares may have any distribution in
    [0, 1]. When all prompts of a pool are used up it may still be undecided: the pool is itself a sample.

    Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (arXiv
    2010.09686), whose capital process multiplies by 1 + lambda (x - m). Here lambda is c / m on the one side
    and c / (1 - m) on the other, fixed and mixed over c in place of a strategy that follows the data. With
    these bets the capital is monotone in m, so the confidence set is an interval; bisection finds its ends.

    Args:
        alpha: the chance of error, in (0, 1).
        threshold: the mean share at which the two stages meet, in (0, 1).

    Example:
        >>> test = SequentialTest(alpha=0.05)
        >>> test.update([0.75, 1.0, 0.5, 1.0, 0.75, 1.0])
        >>> test.decided, test.n, round(test.score, 3)
        (False, 6, 0.833)
        >>> test.update([1.0, 0.75, 1.0, 1.0, 1.0, 0.75])
        >>> test.decided, test.stage.value, [round(end, 3) for end in test.interval]
        (True, 'fine_tuning', [0.503, 0.973])
    """

    method: Literal["betting"] = "betting"

    def __init__(self, alpha: float = 0.05, threshold: float = BOUNDARY) -> None:
        require_alpha(alpha)
        require_threshold(threshold)
        self.alpha = alpha
        self.threshold = threshold
        self._values: Array = np.empty(0)  # each share once, with how often it came: there are few different ones
        self._counts: Array = np.empty(0)

    def update(self, shares: ArrayLike) -> None:
        """Takes the shares of some more prompts.

        Args:
            shares: any number of shares of cross votes that the on-policy side won, each in [0, 1].

        Raises:
            ValueError: a share is NaN or outside [0, 1]; then none of them is taken.
        """
        new = np.asarray(shares, dtype=np.float64).ravel()
        wrong = new[~((new >= 0) & (new <= 1))]
        if wrong.size:
            raise ValueError(
                f"expected shares of cross votes in [0, 1], got {wrong[0]}; a prompt without a vote has no share "
                "and is left out"
            )
        self._values, place = np.unique(np.concatenate([self._values, new]), return_inverse=True)
        self._counts = np.bincount(place, np.concatenate([self._counts, np.ones_like(new)])).astype(np.float64)

    @property
    def n(self) -> int:
        """Prompts so far."""
        return int(self._counts.sum())

    @property
    def score(self) -> float:
        """The mean share so far.

        Raises:
            ValueError: there is no prompt yet.
        """
        if not self.n:
            raise ValueError("the test has no prompt yet: update() it with shares first")
        return float(self._values @ self._counts / self.n)

    @property
    def stage(self) -> Stage:
        """Injection below the threshold, fine-tuning from it on: where it is not decided, the better guess."""
        return Stage.FINE_TUNING if self.score >= self.threshold else Stage.INJECTION

    @property
    def decided(self) -> bool:
        """Whether the threshold is outside the interval."""
        below = self._rejects(1 - self._values, 1 - self.threshold)
        return below or self._rejects(self._values, self.threshold)

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high), within [0, 1]; the score is inside. (0, 1) while there is no prompt."""
        if not self.n:
            return 0.0, 1.0
        low = self._lower_end(self._values, self.threshold)
        high = 1 - self._lower_end(1 - self._values, 1 - self.threshold)
        return min(low, self.score), max(high, self.score)

    def _rejects(self, values: Array, mean: float) -> bool:
        """Whether "the mean of `values` is at most `mean`" has lost."""
        return bool(log_capital(values, self._counts, mean) >= log_threshold(self.alpha))

    def _lower_end(self, values: Array, threshold: float) -> float:
        """The smallest mean of `values` that is not rejected. The sample's own is not (Jensen's inequality)."""
        above = float(values @ self._counts / self.n)
        below = 0.0
        if above > threshold:  # asked first, so that `decided` and the interval cannot differ by rounding
            below, above = (threshold, above) if self._rejects(values, threshold) else (0.0, threshold)
        for _ in range(_HALVINGS):
            middle = (below + above) / 2
            if not below < middle < above:
                break
            below, above = (middle, above) if self._rejects(values, middle) else (below, middle)
        return above if below else 0.0


def log_capital(values: Array, counts: Array, mean: float) -> Array:
    """The log of the capital that was won against "the mean is at most `mean`".

    Args:
        values: [D] the different shares, in [0, 1]; for the other side give 1 - values and 1 - mean.
        counts: [..., D] how often each came.
        mean: what is claimed, in (0, 1].

    Returns:
        [...] nats, at least -inf; 0 at the start.
    """
    growth = np.log1p(_BETS * (values[:, None] / mean - 1))  # [D, bets], at least log(1 - c)
    return np.logaddexp.reduce(counts @ growth + _LOG_WEIGHTS, axis=-1)


def log_threshold(alpha: float) -> float:
    """The log of the capital at which a claim has lost: 2 / alpha, since there are two sides to lose."""
    return math.log(2 / alpha)


def require_alpha(alpha: float) -> None:
    """Raises ValueError unless `alpha` is in (0, 1)."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is the chance of error, in (0, 1), such as 0.05; got {alpha}")


def require_threshold(threshold: float) -> None:
    """Raises ValueError unless `threshold` is in (0, 1)."""
    if not 0 < threshold < 1:
        raise ValueError(
            f"threshold is the score at which the stages meet, in (0, 1), 0.5 in the paper; got {threshold}"
        )
