"""A judge that stores the verdicts of another judge, so that each is paid for once."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lit_align.checks import require_at_least_1
from lit_align.judges.answers import Answer, answers_of, scores_by_set
from lit_align.judges.base import Comparison, Judge, PairVerdict, PairwiseJudge, PointwiseJudge
from lit_align.judges.verdict_store import VerdictStore
from lit_align.judges.vote_arrays import ABSTAINED
from lit_align.policy.cache import cache_dir
from lit_align.records import Candidate, CandidateSet, Prompt, is_plain, prompt_identity

_Question = TypeVar("_Question", bound=Hashable)


class CachedJudge(Judge):
    """Stores another judge's verdicts on disk, so that resuming, relabelling and evaluating never pay for one twice.

    The key of a verdict is the judge's identity, the prompt and the answers. For a judge that scores the value is an
    answer's score, for a judge that compares it is P(first wins) of each order. The judge is asked only for verdicts
    that are missing. Abstentions are not stored, since the cause may be a failed call. Any number of runs may use the
    file at once. A damaged file is set aside, and if the file cannot be written judging continues without it, both
    with a warning. See `docs/judges.md`.

    Args:
        judge: the judge to ask; its verdicts must be storable (`cacheable`).
        path: the SQLite file; None is `verdicts.sqlite` in the cache folder ($LIT_ALIGN_CACHE).
        commit_every: how many verdicts to ask for in one call before they are written; a crash loses at most this
            many. An error or Ctrl-C loses none of those that the judge gave before (`PairwiseJudge.compare_each`).

    Attributes:
        hits: verdicts read from the file. Equal answers in one call count once.
        misses: verdicts that the judge was asked for.
        stored: a :class:`PointwiseJudge` or a :class:`PairwiseJudge`, as the judge inside is, over the file.

    Raises:
        ValueError: the judge's verdicts depend on more than its identity, the prompt and the answers.
    """

    cacheable = False  # storing them twice gains nothing

    def __init__(self, judge: Judge, path: str | None = None, commit_every: int = 256) -> None:
        if not judge.cacheable or not (judge.grades or isinstance(judge, PairwiseJudge)):
            parts = "; wrap its parts instead" if judge.parts else ""
            raise ValueError(
                f"the verdicts of {type(judge).__name__} cannot be kept: they depend on more than its identity, the "
                f"prompt and the answers (the row, the other candidates, code that may change){parts}"
            )
        require_at_least_1(commit_every=commit_every)
        self.judge: Any = judge
        self.parts = (judge,)
        self.grades = judge.grades
        self.gives_probabilities = judge.gives_probabilities
        self.stored: Judge = (_StoredScores if judge.grades else _StoredComparisons)(judge, self._look_up)
        self.commit_every = commit_every
        self._store = VerdictStore(Path(path).expanduser() if path else cache_dir() / "verdicts.sqlite")
        self._counts: Counter[str] = Counter()

    @property
    def identity(self) -> str:  # type: ignore[override]
        """The identity of the judge inside, whose verdicts these are."""
        return str(self.judge.identity)

    @property
    def hits(self) -> int:
        return self._counts["hits"]

    @property
    def misses(self) -> int:
        return self._counts["misses"]

    def report(self) -> str | None:
        """Says how many verdicts came from the file, and adds the report of the judge inside."""
        requests = self.hits + self.misses
        judge_report = super().report()
        if not requests:
            return judge_report
        name = type(self.judge).__name__
        own_report = f"verdict cache: {self.hits:,} of {requests:,} verdicts of {name} were known; {self._store.path}"
        return f"{own_report}\n{judge_report}" if judge_report else own_report

    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        return self.stored.score(sets)

    def cross_votes(self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[np.ndarray]:
        return self.stored.cross_votes(on, off)

    def votes_within(self, sets: Sequence[CandidateSet]) -> list[np.ndarray]:
        return self.stored.votes_within(sets)

    def judge_pairs(self, sets: Sequence[CandidateSet]) -> list[PairVerdict]:
        return self.stored.judge_pairs(sets)

    def _look_up(
        self,
        questions: Sequence[_Question],
        key: Callable[[_Question], bytes],
        ask: Callable[[list[_Question]], Iterator[tuple[_Question, float]]],
    ) -> dict[_Question, float]:
        """Returns the verdict on each question from the file, or asks for it and stores it, `commit_every` at once."""
        keys = {question: key(question) for question in questions}
        stored = self._store.read(set(keys.values()))
        verdicts = {question: stored.get(key, ABSTAINED) for question, key in keys.items()}
        missing = [question for question, key in keys.items() if key not in stored]
        self._counts["hits"] += len(keys) - len(missing)
        for start in range(0, len(missing), self.commit_every):
            new: dict[_Question, float] = {}
            try:
                for question, verdict in ask(missing[start : start + self.commit_every]):
                    new[question] = verdict
            finally:  # stores also those that came before an error
                self._counts["misses"] += len(new)
                self._store.write({keys[question]: v for question, v in new.items() if math.isfinite(v)})
            verdicts.update(new)
        return verdicts


class _Stored(Judge):
    def __init__(self, judge: Any, look_up: Callable[..., dict[Any, float]]) -> None:
        self.judge = judge
        self.gives_probabilities = judge.gives_probabilities
        self._look_up = look_up

    @property
    def identity(self) -> str:  # type: ignore[override]
        return str(self.judge.identity)


class _StoredScores(_Stored, PointwiseJudge):
    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        answers = answers_of(sets)
        identity = self.identity if answers else ""
        scores = self._look_up(answers, lambda answer: _key_of_score(identity, *answer), self._ask)
        return scores_by_set(sets, scores)

    def _ask(self, answers: list[Answer]) -> Iterator[tuple[Answer, float]]:
        candidates: dict[Prompt, list[Candidate]] = {}
        for prompt, candidate in answers:
            candidates.setdefault(prompt, []).append(candidate)
        sets = [CandidateSet(prompt, tuple(of_prompt)) for prompt, of_prompt in candidates.items()]
        verdicts: dict[Answer, float] = {}
        for candidate_set, scores in zip(sets, self.judge.score(sets), strict=True):
            verdicts.update(zip(answers_of([candidate_set]), scores, strict=True))
        return iter(verdicts.items())


def _key_of_score(identity: str, prompt: Prompt, candidate: Candidate) -> bytes:
    return _key(identity, prompt, candidate.text, *([candidate.turn] if candidate.turn else []))


class _StoredComparisons(_Stored, PairwiseJudge):
    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        """See :meth:`PairwiseJudge.compare`."""
        identity = self.identity if comparisons else ""
        verdicts = self._look_up(
            comparisons, lambda c: _key(identity, c.prompt, c.first, c.second), self.judge.verdicts
        )
        return [verdicts[comparison] for comparison in comparisons]

    def votes(self, forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
        """See :meth:`PairwiseJudge.votes`: that of the judge inside."""
        votes: np.ndarray = self.judge.votes(forward, backward)
        return votes

    def ranking(self, forward: np.ndarray) -> list[float]:
        """See :meth:`PairwiseJudge.ranking`: that of the judge inside."""
        ranking: list[float] = self.judge.ranking(forward)
        return ranking


def _key(identity: str, prompt: Prompt, *answers: str) -> bytes:
    """Hashes all that a verdict depends on to 16 bytes. One answer has a score, two have P(first wins)."""
    further = [] if is_plain(prompt) else [prompt_identity(prompt)]
    question = json.dumps([identity, [[message.role, message.content] for message in prompt], answers, *further])
    return hashlib.blake2b(question.encode(), digest_size=16).digest()
