"""What every judge does: score candidates, and say who wins across two sets of the same prompt."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from lit_align.records import CandidateSet, Prompt, prompt_text

ABSTAINED = math.nan
"""A judge that cannot say gives this, never a score of its own invention."""

_BLAME = "raised by"


class Judge(ABC):
    """A preference model that stands for the truth.

    Attributes:
        identity: names the judge and changes with everything that its verdicts depend on, for logs and caches.
        cacheable: whether a verdict depends on nothing but `identity`, the prompt and the texts that are judged
            (not on the row, the other candidates or code that may change), so that it can be kept.
        parts: the judges that it is made of.
    """

    identity: str
    cacheable: bool = False
    parts: tuple[Judge, ...] = ()

    @abstractmethod
    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        """Scores the candidates of each set against each other.

        Returns:
            One list for each set, one finite score for each candidate, higher is better; NaN where
            the judge abstained. Scores of one prompt compare; scores of two prompts need not.
        """

    @abstractmethod
    def cross_votes(self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[np.ndarray]:
        """Compares each on-policy candidate with each off-policy candidate of the same prompt.

        Args:
            on: N sets with K_on candidates each (K may differ from set to set).
            off: N sets of the same prompts in the same order, with K_off candidates each.

        Returns:
            N arrays [K_on, K_off] float64: the probability that the on-policy candidate wins, 0.5 at a
            tie, NaN where the judge abstained.
        """

    def votes_within(self, sets: Sequence[CandidateSet]) -> list[np.ndarray]:
        """Compares the candidates of each set with each other.

        Returns:
            N arrays [K, K] float64: the probability that the row's candidate beats the column's, NaN where the
            judge abstained. The diagonal says nothing.
        """
        return self.cross_votes(sets, sets)

    def report(self) -> str | None:
        """What this process asked for so far and what it took, in a line or more; None where there is nothing to tell.

        A run shows it once, at its end.
        """
        return "\n".join(told for part in self.parts if (told := part.report())) or None

    def release(self) -> None:
        """Gives back the memory that models take, until they are asked again."""
        for part in self.parts:
            part.release()


class PointwiseJudge(Judge):
    """A judge that gives each candidate a score; of two candidates the higher score wins."""

    def cross_votes(self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[np.ndarray]:
        """See :meth:`Judge.cross_votes`. Both sides of a prompt are scored together, as one set."""
        scores = self.score(side_by_side(on, off))
        counts = [len(one.candidates) for one in on]
        return [votes_from_scores(s[:n], s[n:]) for s, n in zip(scores, counts, strict=True)]


@dataclass(frozen=True)
class Comparison:
    """Two completions of a prompt, in the order in which the judge is to see them."""

    prompt: Prompt
    first: str
    second: str


class PairwiseJudge(Judge):
    """A judge that compares two completions; a subclass gives `compare` alone, and `compare_each` where it can.

    Judges of this kind favour a position, so each pair is shown in both orders. Equal comparisons are asked for
    once. What is made of the answers is :meth:`votes` and :meth:`ranking`.
    """

    cacheable = True  # it sees a prompt and two texts, nothing else

    @abstractmethod
    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        """P(first wins) in [0, 1] for each comparison; NaN where the judge abstained."""

    def compare_each(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, float]]:
        """What `compare` says, one by one as it becomes known: the place in `comparisons` and P(first wins).

        A judge that is asked one thing at a time gives each answer here as it comes: what it said before a failure
        can then be kept.

        Raises:
            ValueError: `compare` answers with another count, or with what is no probability.
        """
        verdicts = list(self.compare(comparisons))
        self._require_one_for_each(len(verdicts), len(comparisons))
        for verdict in verdicts:  # before any of them is taken
            self._require_probability(verdict)
        yield from enumerate(verdicts)

    def votes(self, forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
        """P(a wins): the mean of both orders.

        Args:
            forward: any shape, P(a wins) where a came first.
            backward: the same shape, P(b wins) where b came first.
        """
        return 0.5 + (forward - backward) / 2

    def ranking(self, forward: np.ndarray) -> list[float]:
        """The scores of a set's candidates: the mean probability of beating the others, 0.5 for a lone one.

        Args:
            forward: [K, K], P(row wins) where the row's candidate came first; the diagonal says nothing.
        """
        return mean_of_opponents(self.votes(forward, forward.T), alone=0.5)

    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        """What :meth:`ranking` makes of all comparisons within a set."""
        return [self.ranking(forward) for forward, _ in self._asked([(s, s) for s in sets], within=True)]

    def cross_votes(self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[np.ndarray]:
        require_same_prompts(on, off)
        return [self.votes(*both) for both in self._asked(list(zip(on, off, strict=True)), within=False)]

    def votes_within(self, sets: Sequence[CandidateSet]) -> list[np.ndarray]:
        return [self.votes(*both) for both in self._asked([(s, s) for s in sets], within=True)]

    def _asked(
        self, pairs: Sequence[tuple[CandidateSet, CandidateSet]], within: bool
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """P(a wins), a first, and P(b wins), b first, each [K_a, K_b], for each pair of sets.

        One call of `compare_each` for all of them. Within one set the diagonal is not asked for.
        """
        cells = [
            (n, i, j)
            for n, (a, b) in enumerate(pairs)
            for i in range(len(a.candidates))
            for j in range(len(b.candidates))
            if not within or i != j
        ]
        questions = []
        for n, i, j in cells:
            a, b = pairs[n]
            first, second = a.candidates[i].text, b.candidates[j].text
            questions.append((Comparison(a.prompt, first, second), Comparison(a.prompt, second, first)))
        answers = dict(self.verdicts(list(dict.fromkeys(question for both in questions for question in both))))
        shapes = [(len(a.candidates), len(b.candidates)) for a, b in pairs]
        blocks = [(np.full(shape, ABSTAINED), np.full(shape, ABSTAINED)) for shape in shapes]
        for (n, i, j), (forward, backward) in zip(cells, questions, strict=True):
            blocks[n][0][i, j], blocks[n][1][i, j] = answers[forward], answers[backward]
        return blocks

    def verdicts(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[Comparison, float]]:
        """What `compare_each` gives to distinct comparisons, as it comes.

        Raises:
            ValueError: not every comparison gets one answer, or one gets what is no probability.
        """
        if not comparisons:
            return
        open_ones = set(range(len(comparisons)))
        with blaming(self, comparisons[0].prompt, len({c.prompt for c in comparisons})):
            for place, verdict in self.compare_each(comparisons):
                self._require_probability(verdict)
                if place not in open_ones:
                    raise ValueError(f"{self.identity} answered comparison {place} twice, or was not asked for it")
                open_ones.remove(place)
                yield comparisons[place], verdict
            self._require_one_for_each(len(comparisons) - len(open_ones), len(comparisons))

    def _require_one_for_each(self, answered: int, asked: int) -> None:
        if answered != asked:
            raise ValueError(
                f"{self.identity} was asked for {asked} comparisons and answered {answered}; "
                "it must give one probability for each comparison, NaN for an abstention"
            )

    def _require_probability(self, verdict: float) -> None:
        if not math.isnan(verdict) and not 0.0 <= verdict <= 1.0:
            raise ValueError(
                f"{self.identity} answered {verdict}, expected P(first wins) in [0, 1], or NaN for an abstention"
            )


def votes_from_scores(on: Sequence[float], off: Sequence[float]) -> np.ndarray:
    """[K_on, K_off] float64 votes: 1 where the on-policy score is higher, 0.5 at a tie, NaN where one is NaN."""
    a, b = np.asarray(on, dtype=np.float64)[:, None], np.asarray(off, dtype=np.float64)[None, :]
    votes = 0.5 * ((a > b).astype(np.float64) + (a >= b))
    votes[np.isnan(a) | np.isnan(b)] = ABSTAINED
    return votes


def graded_votes(on: Sequence[float], off: Sequence[float]) -> np.ndarray:
    """[K_on, K_off] float64 in [0, 1]: the margins in units of the range of all these scores.

    0.5 + (on - off) / (2 * range), so that 1 is the best on-policy candidate against the worst off-policy one where
    these are the ends of the range, and the judge's scale does not matter. All equal: 0.5. NaN where a score is NaN.
    Where a score is infinite there is no range, and they are the votes of :func:`votes_from_scores`.
    """
    a, b = np.asarray(on, dtype=np.float64)[:, None], np.asarray(off, dtype=np.float64)[None, :]
    known = np.concatenate([a.ravel(), b.ravel()])
    known = known[~np.isnan(known)]
    if np.isinf(known).any() or not known.size:
        return votes_from_scores(on, off)
    span = known.max() - known.min()
    return np.where(np.isnan(a - b), ABSTAINED, 0.5 + (a - b) / (2 * span) if span else 0.5)


def mean_of_opponents(block: np.ndarray, alone: float) -> list[float]:
    """The mean of each row's cells off the diagonal that hold a verdict.

    Args:
        block: [K, K]; NaN where the judge abstained. The diagonal says nothing.
        alone: what a candidate without opponents gets.

    Returns:
        K numbers, NaN for a candidate none of whose comparisons has a verdict.
    """
    if len(block) == 1:
        return [alone]
    known = ~np.isnan(block) & ~np.eye(len(block), dtype=bool)
    counts = known.sum(1)
    sums = np.where(known, block, 0.0).sum(1)
    return [float(s / c) if c else ABSTAINED for s, c in zip(sums, counts, strict=True)]


@contextmanager
def blaming(judge: Judge, prompt: Prompt, prompts: int = 1) -> Iterator[None]:
    """Adds to an error raised in the block which judge it was and what it judged; the error stays what it is.

    Of a judge inside a judge the inner one is named.
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
    """What `error.add_note` does, which needs Python 3.11."""
    setattr(error, "__notes__", [*getattr(error, "__notes__", ()), note])  # noqa: B010


def side_by_side(on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[CandidateSet]:
    """One set for each prompt: its on-policy candidates, then its off-policy ones, with the static row."""
    require_same_prompts(on, off)
    return [replace(b, candidates=a.candidates + b.candidates) for a, b in zip(on, off, strict=True)]


def require_same_prompts(on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> None:
    """Raises ValueError where two sets that stand beside each other are not of one prompt."""
    if len(on) != len(off):
        raise ValueError(f"cross_votes needs as many on-policy as off-policy sets, got {len(on)} and {len(off)}")
    for a, b in zip(on, off, strict=True):
        if a.prompt != b.prompt:
            raise ValueError(
                f"cross_votes compares sets of the same prompt, got {a.prompt!r} ({a.where}) beside "
                f"{b.prompt!r} ({b.where}); match them by prompt first (measure_sets does)"
            )
