"""The interface of judges: they score the candidates of a prompt and compare two sets of candidates."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from lit_align.records import CandidateSet, Prompt, prompt_text

ABSTAINED = math.nan
"""The verdict of a judge that cannot decide. It must never invent a score instead."""

_BLAME = "raised by"


class Judge(ABC):
    """A preference model: its verdicts decide which answers are better.

    Attributes:
        identity: names the judge in logs and caches; it changes with everything that the verdicts depend on.
        cacheable: whether a verdict depends only on `identity`, the prompt and the judged texts (not on the row, the
            other candidates or code that may change), so that it can be stored.
        parts: the judges that this judge is made of.
    """

    identity: str
    cacheable: bool = False
    parts: tuple[Judge, ...] = ()

    @abstractmethod
    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        """Scores the candidates of each set against each other.

        Returns:
            One list per set with one finite score per candidate, higher is better; NaN if the judge abstained.
            Scores are comparable within a prompt, not necessarily between prompts.
        """

    @abstractmethod
    def cross_votes(self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[np.ndarray]:
        """Compares each on-policy candidate with each off-policy candidate of the same prompt.

        Args:
            on: N sets with K_on candidates each (K may differ from set to set).
            off: N sets of the same prompts in the same order, with K_off candidates each.

        Returns:
            N arrays [K_on, K_off] float64: the probability that the on-policy candidate wins, 0.5 for a tie, NaN if
            the judge abstained.
        """

    def votes_within(self, sets: Sequence[CandidateSet]) -> list[np.ndarray]:
        """Compares the candidates of each set with each other.

        Returns:
            N arrays [K, K] float64: the probability that the row's candidate beats the column's, NaN if the judge
            abstained. The diagonal has no meaning.
        """
        return self.cross_votes(sets, sets)

    def report(self) -> str | None:
        """Sums up this process's requests so far and their cost, in one or more lines; None if there were none.

        A run shows it once, at its end.
        """
        return "\n".join(report for part in self.parts if (report := part.report())) or None

    def release(self) -> None:
        """Frees the memory of models; the next request loads them again."""
        for part in self.parts:
            part.release()


class PointwiseJudge(Judge):
    """A judge that gives each candidate a score; of two candidates the higher score wins."""

    def cross_votes(self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[np.ndarray]:
        """See :meth:`Judge.cross_votes`. Both sides of a prompt are scored together, as one set."""
        scores = self.score(side_by_side(on, off))
        counts = [len(candidate_set.candidates) for candidate_set in on]
        return [votes_from_scores(s[:n], s[n:]) for s, n in zip(scores, counts, strict=True)]


@dataclass(frozen=True)
class Comparison:
    """Two completions of a prompt, in the order in which the judge sees them."""

    prompt: Prompt
    first: str
    second: str


class PairwiseJudge(Judge):
    """A judge that compares two completions. A subclass defines :meth:`compare`, or also :meth:`compare_each`.

    Such judges tend to favour a position, so each pair is shown in both orders; equal comparisons are made once.
    :meth:`votes` and :meth:`ranking` turn the verdicts into votes and scores.
    """

    cacheable = True  # a verdict depends on a prompt and two texts, nothing else

    @abstractmethod
    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        """Returns P(first wins) in [0, 1] for each comparison; NaN if the judge abstained."""

    def compare_each(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, float]]:
        """Yields each verdict as soon as it is there: the index in `comparisons` and P(first wins).

        By default all verdicts come at once, from :meth:`compare`. A judge that makes one comparison at a time
        overrides this method and yields each verdict at once, so that those before a failure can be kept.

        Raises:
            ValueError: `compare` returns the wrong number of verdicts, or one that is not a probability.
        """
        verdicts = list(self.compare(comparisons))
        self._require_one_for_each(len(verdicts), len(comparisons))
        for verdict in verdicts:  # before any of them is used
            self._require_probability(verdict)
        yield from enumerate(verdicts)

    def votes(self, forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
        """Computes P(a wins) as the mean of both orders.

        Args:
            forward: P(a wins) if a is shown first, of any shape.
            backward: P(b wins) if b is shown first, of the same shape.
        """
        return 0.5 + (forward - backward) / 2

    def ranking(self, forward: np.ndarray) -> list[float]:
        """Scores a set's candidates: the mean probability of beating the others, 0.5 for a single candidate.

        Args:
            forward: [K, K], P(row wins) if the row's candidate is shown first; the diagonal has no meaning.
        """
        return mean_of_opponents(self.votes(forward, forward.T), alone=0.5)

    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        """Compares the candidates of each set with each other and scores them by :meth:`ranking`."""
        return [self.ranking(forward) for forward, _ in self._compare_within(sets)]

    def cross_votes(self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[np.ndarray]:
        require_same_prompts(on, off)
        return [self.votes(*orders) for orders in self._compare_sets(list(zip(on, off, strict=True)))]

    def votes_within(self, sets: Sequence[CandidateSet]) -> list[np.ndarray]:
        return [self.votes(*orders) for orders in self._compare_within(sets)]

    def _compare_within(self, sets: Sequence[CandidateSet]) -> list[np.ndarray]:
        return self._compare_sets([(candidate_set, candidate_set) for candidate_set in sets], skip_diagonal=True)

    def _compare_sets(
        self, pairs: Sequence[tuple[CandidateSet, CandidateSet]], skip_diagonal: bool = False
    ) -> list[np.ndarray]:
        """Compares each candidate of a with each of b in both orders, for all pairs (a, b) of sets at once.

        Returns:
            An array [2, K_a, K_b] for each pair: P(a wins) if a is shown first, and P(b wins) if b is shown first.
        """
        questions: dict[tuple[int, int, int], tuple[Comparison, Comparison]] = {}
        for n, (a, b) in enumerate(pairs):
            for i, j in np.ndindex(len(a.candidates), len(b.candidates)):
                if skip_diagonal and i == j:
                    continue
                text_a = a.candidates[i].text
                text_b = b.candidates[j].text
                questions[n, i, j] = (Comparison(a.prompt, text_a, text_b), Comparison(a.prompt, text_b, text_a))
        distinct = list(dict.fromkeys(chain.from_iterable(questions.values())))
        verdicts = dict(self.verdicts(distinct))
        blocks = [np.full((2, len(a.candidates), len(b.candidates)), ABSTAINED) for a, b in pairs]
        for (n, i, j), (forward, backward) in questions.items():
            blocks[n][:, i, j] = verdicts[forward], verdicts[backward]
        return blocks

    def verdicts(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[Comparison, float]]:
        """Yields each of the distinct comparisons with its verdict, as soon as the judge gives it.

        Raises:
            ValueError: a comparison gets no verdict or two, or one that is not a probability.
        """
        if not comparisons:
            return
        # compare_each may answer in any order. Each verdict is checked and passed on at once, so that a caller can
        # keep what came before a failure; only at the end does it show whether every comparison was answered.
        unanswered = set(range(len(comparisons)))
        with blaming(self, comparisons[0].prompt, len({c.prompt for c in comparisons})):
            for index, verdict in self.compare_each(comparisons):
                self._require_probability(verdict)
                if index not in unanswered:
                    raise ValueError(f"{self.identity} answered comparison {index} twice, or was not asked for it")
                unanswered.remove(index)
                yield comparisons[index], verdict
            self._require_one_for_each(len(comparisons) - len(unanswered), len(comparisons))

    def _require_one_for_each(self, answers: int, comparisons: int) -> None:
        if answers != comparisons:
            raise ValueError(
                f"{self.identity} was asked for {comparisons} comparisons and answered {answers}; "
                "it must give one probability for each comparison, NaN for an abstention"
            )

    def _require_probability(self, verdict: float) -> None:
        if not math.isnan(verdict) and not 0.0 <= verdict <= 1.0:
            raise ValueError(
                f"{self.identity} answered {verdict}, expected P(first wins) in [0, 1], or NaN for an abstention"
            )


def votes_from_scores(on: Sequence[float], off: Sequence[float]) -> np.ndarray:
    """Turns scores into votes [K_on, K_off] float64: 1 if the on-policy score is higher, 0.5 for a tie, NaN for NaN."""
    a = np.asarray(on, dtype=np.float64)[:, None]
    b = np.asarray(off, dtype=np.float64)[None, :]
    votes = 0.5 * ((a > b).astype(np.float64) + (a >= b))
    votes[np.isnan(a) | np.isnan(b)] = ABSTAINED
    return votes


def graded_votes(on: Sequence[float], off: Sequence[float]) -> np.ndarray:
    """Turns scores into graded votes [K_on, K_off] float64 in [0, 1]: margins relative to the range of all scores.

    0.5 + (on - off) / (2 * range), so the judge's scale does not matter: if the best score is on-policy and the worst
    off-policy, their vote is 1. Equal scores give 0.5, NaN gives NaN. An infinite score leaves no range; the votes
    are those of :func:`votes_from_scores` then.
    """
    a = np.asarray(on, dtype=np.float64)[:, None]
    b = np.asarray(off, dtype=np.float64)[None, :]
    scores = np.concatenate([a.ravel(), b.ravel()])
    scores = scores[~np.isnan(scores)]
    if np.isinf(scores).any() or not scores.size:
        return votes_from_scores(on, off)
    span = scores.max() - scores.min()
    return np.where(np.isnan(a - b), ABSTAINED, 0.5 + (a - b) / (2 * span) if span else 0.5)


def mean_of_opponents(block: np.ndarray, alone: float) -> list[float]:
    """Averages each row's votes off the diagonal, without abstentions.

    Args:
        block: [K, K], NaN if the judge abstained; the diagonal has no meaning.
        alone: the result for a candidate without opponents.

    Returns:
        K numbers; NaN for a candidate if the judge abstained from all its comparisons.
    """
    if len(block) == 1:
        return [alone]
    counted = ~np.isnan(block) & ~np.eye(len(block), dtype=bool)
    counts = counted.sum(1)
    sums = np.where(counted, block, 0.0).sum(1)
    return [float(s / c) if c else ABSTAINED for s, c in zip(sums, counts, strict=True)]


@contextmanager
def blaming(judge: Judge, prompt: Prompt, prompts: int = 1) -> Iterator[None]:
    """Adds a note to an error raised in the block that names the judge and the prompt. The error stays the same.

    If a judge contains another, the note names the inner one.
    """
    try:
        yield
    except Exception as error:
        if any(note.startswith(_BLAME) for note in getattr(error, "__notes__", ())):
            raise
        more = f" and {prompts - 1} more prompts" if prompts > 1 else ""
        add_note(error, f"{_BLAME} {type(judge).__name__} on the prompt {prompt_text(prompt)[:60]!r}{more}")
        raise


def add_note(error: BaseException, note: str) -> None:
    """Adds a note to an error, as `error.add_note` does from Python 3.11 on."""
    setattr(error, "__notes__", [*getattr(error, "__notes__", ()), note])  # noqa: B010


def side_by_side(on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[CandidateSet]:
    """Joins both sets of each prompt, on-policy candidates first, with the row of the off-policy set."""
    require_same_prompts(on, off)
    return [replace(b, candidates=a.candidates + b.candidates) for a, b in zip(on, off, strict=True)]


def require_same_prompts(on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> None:
    """Raises ValueError unless each two sets at the same index have the same prompt."""
    if len(on) != len(off):
        raise ValueError(f"cross_votes needs as many on-policy as off-policy sets, got {len(on)} and {len(off)}")
    for a, b in zip(on, off, strict=True):
        if a.prompt != b.prompt:
            raise ValueError(
                f"cross_votes compares sets of the same prompt, got {a.prompt!r} ({a.where}) beside "
                f"{b.prompt!r} ({b.where}); match them by prompt first (measure_sets does)"
            )
