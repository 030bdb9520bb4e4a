"""The interface of judges: they score the candidates of a prompt and compare two sets of candidates."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from lit_align.judges.answers import require_same_prompts, side_by_side
from lit_align.judges.vote_arrays import ABSTAINED, mean_of_opponents, votes_from_scores
from lit_align.records import CandidateSet, Prompt, prompt_text

_BLAME = "raised by"


class PairVerdict(NamedTuple):
    """The verdict on two answers.

    Args:
        first_wins: P(the first answer wins) in [0, 1], 0.5 for a tie, NaN for an abstention.
        orders: of a judge that sees the answers in an order, P(shown first wins) for the first and for the second
            answer; None for any other judge.
    """

    first_wins: float
    orders: tuple[float, float] | None = None


class Judge(ABC):
    """A preference model: its verdicts decide which answers are better.

    Attributes:
        identity: names the judge in logs and caches; it changes with everything that the verdicts depend on.
        cacheable: whether a verdict depends only on `identity`, the prompt and the judged texts (not on the row, the
            other candidates or code that may change), so that it can be stored.
        grades: whether its scores say by how much an answer is better, and its votes are nothing but comparisons of
            scores: then one pass for the scores gives both.
        gives_probabilities: for a judge that grades, whether the sigmoid of a difference of two scores is
            P(the first wins), as for a reward model that was trained as Bradley-Terry.
        holds_model: whether it holds a model on a device of its own process.
        free: whether it can be asked without loading a model or asking a server.
        parts: the judges that this judge is made of.
    """

    identity: str
    cacheable: bool = False
    grades: bool = False
    gives_probabilities: bool = False
    holds_model: bool = False
    free: bool = False
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

    def score_sides(
        self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]
    ) -> list[tuple[list[float], list[float]]]:
        """Scores both sides of each prompt together, as one set.

        Returns:
            The scores of the on-policy and of the off-policy candidates of each prompt.

        Raises:
            ValueError: the judge does not give one score for each candidate.
        """
        sets = side_by_side(on, off)
        scores = self.score(sets)
        require_score_for_each(self, sets, scores)
        counts = [len(candidates.candidates) for candidates in on]
        return [(of_set[:count], of_set[count:]) for of_set, count in zip(scores, counts, strict=True)]

    def judge_pairs(self, sets: Sequence[CandidateSet]) -> list[PairVerdict]:
        """The verdicts on sets of two answers."""
        if not self.grades:
            return [PairVerdict(float(votes[0, 1])) for votes in self.votes_within(sets)]
        return [PairVerdict(self._first_wins(first - second)) for first, second in self.score(sets)]

    def _first_wins(self, difference: float) -> float:
        """P(the first answer wins) by the difference of the scores."""
        if self.gives_probabilities:
            return 0.5 + 0.5 * math.tanh(difference / 2)  # the sigmoid, which cannot overflow in this form
        return 0.5 + 0.5 * float(np.sign(difference))

    def report(self) -> str | None:
        """Sums up this process's requests so far and their cost, in one or more lines; None if there were none.

        A run shows it once, at its end.
        """
        return "\n".join(report for part in self.parts if (report := part.report())) or None

    def demand_model(self) -> None:
        """Refuses a model that is not there, without loading it: a run asks before it loads its own.

        Raises:
            FileNotFoundError: it is not.
        """
        for part in self.parts:
            part.demand_model()

    def release(self) -> None:
        """Frees the memory of models; the next request loads them again."""
        for part in self.parts:
            part.release()


class PointwiseJudge(Judge):
    """A judge that gives each candidate a score; of two candidates the higher score wins.

    A subclass with votes of another kind defines `cross_votes`: then it does not grade, unless it says so.
    """

    grades = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "cross_votes" in vars(cls) and "grades" not in vars(cls):
            cls.grades = False

    def cross_votes(self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[np.ndarray]:
        """See :meth:`Judge.cross_votes`. Both sides of a prompt are scored together."""
        return [votes_from_scores(*scores) for scores in self.score_sides(on, off)]


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

    def judge_pairs(self, sets: Sequence[CandidateSet]) -> list[PairVerdict]:
        """See :meth:`Judge.judge_pairs`. Each two answers are shown in both orders."""
        orders = np.array([block[:, 0, 1] for block in self._compare_within(sets)]).reshape(-1, 2)  # [N, 2]
        votes = self.votes(orders[:, 0], orders[:, 1])
        return [PairVerdict(float(vote), (float(a), float(b))) for vote, (a, b) in zip(votes, orders, strict=True)]

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
        error.add_note(f"{_BLAME} {type(judge).__name__} on the prompt {prompt_text(prompt)[:60]!r}{more}")
        raise


def require_score_for_each(judge: Judge, sets: Sequence[CandidateSet], scores: Sequence[Sequence[float]]) -> None:
    """Raises ValueError unless there is one score for each candidate of each set."""
    expected = [len(candidates.candidates) for candidates in sets]
    got = [len(of_set) for of_set in scores]
    if got != expected:
        raise ValueError(f"expected {judge.identity} to score {expected} candidates of {len(sets)} sets, got {got}")
