"""Verdicts that are paid for once: a judge that remembers what another judge said."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lit_align.judges.base import ABSTAINED, Comparison, Judge, PairwiseJudge, PointwiseJudge
from lit_align.judges.verdict_store import VerdictStore
from lit_align.policy.cache import cache_dir
from lit_align.records import Candidate, CandidateSet, Prompt, is_plain, prompt_identity, unscored

_Question = TypeVar("_Question", bound=Hashable)
_Answer = tuple[Prompt, Candidate]


class CachedJudge(Judge):
    """Keeps another judge's verdicts on disk, so that resuming, labelling again and evaluating never pay twice.

    A verdict is kept under the judge's identity, the prompt and the answers: a score for each answer of a judge
    that scores, P(first wins) for each order of a judge that compares. Only what is missing is asked for.
    Abstentions are not kept, since they may be a failed call. The file may be used by any number of runs at once;
    a damaged one is set aside, and where nothing can be written judging goes on without it, both with a warning.
    `docs/judges.md` says more.

    The object is a :class:`PointwiseJudge` or a :class:`PairwiseJudge`, as the judge that it wraps is.

    Args:
        judge: the judge that is asked; one whose verdicts can be kept (`cacheable`).
        path: the SQLite file; None is `verdicts.sqlite` in the cache folder ($LIT_ALIGN_CACHE).
        commit_every: verdicts asked for in one call and then written: a crash costs at most so many. An error or
            Ctrl-C costs none that a judge gave before it (`PairwiseJudge.compare_each`).

    Attributes:
        hits: verdicts that were known. The same answers asked for again in one call count once.
        misses: verdicts that the judge was asked for.

    Raises:
        ValueError: the judge's verdicts depend on more than its identity, the prompt and the answers.
    """

    cacheable = False  # nothing is won by keeping them again

    def __init__(self, judge: Judge, path: str | None = None, commit_every: int = 256) -> None:
        if not judge.cacheable or not isinstance(judge, PointwiseJudge | PairwiseJudge):
            parts = "; wrap its parts instead" if judge.parts else ""
            raise ValueError(
                f"the verdicts of {type(judge).__name__} cannot be kept: they depend on more than its identity, the "
                f"prompt and the answers (the row, the other candidates, code that may change){parts}"
            )
        if commit_every < 1:
            raise ValueError(f"expected commit_every to be at least 1, got {commit_every}")
        if type(self) is CachedJudge:  # it becomes of the kind of what it wraps; whoever asks for a kind sees that
            self.__class__ = _CachedScores if isinstance(judge, PointwiseJudge) else _CachedComparisons
        self.judge: Any = judge
        self.parts = (judge,)
        self.commit_every = commit_every
        self._store = VerdictStore(Path(path).expanduser() if path else cache_dir() / "verdicts.sqlite")
        self._counts: Counter[str] = Counter()

    @property
    def identity(self) -> str:  # type: ignore[override]
        """The wrapped judge's: its verdicts are the same."""
        return str(self.judge.identity)

    @property
    def hits(self) -> int:
        return self._counts["hits"]

    @property
    def misses(self) -> int:
        return self._counts["misses"]

    def report(self) -> str | None:
        """How many verdicts were known, and what the judge has to tell."""
        asked, told = self.hits + self.misses, super().report()
        if not asked:
            return told
        name = type(self.judge).__name__
        own = f"verdict cache: {self.hits:,} of {asked:,} verdicts of {name} were known; {self._store.path}"
        return f"{own}\n{told}" if told else own

    # Both are those of the kind, which comes next in the method order; a class without them could not be named
    # in a config.
    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        return super().score(sets)  # type: ignore[safe-super]

    def cross_votes(self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[np.ndarray]:
        return super().cross_votes(on, off)  # type: ignore[safe-super]

    def _found(
        self,
        questions: Sequence[_Question],
        key: Callable[[_Question], bytes],
        ask: Callable[[list[_Question]], Iterator[tuple[_Question, float]]],
    ) -> dict[_Question, float]:
        """The verdict on each question: known, or asked for and kept, `commit_every` at once."""
        keys = {question: key(question) for question in questions}
        known = self._store.read(set(keys.values()))
        verdicts = {question: known.get(key, ABSTAINED) for question, key in keys.items()}
        missing = [question for question, key in keys.items() if key not in known]
        self._counts["hits"] += len(keys) - len(missing)
        for start in range(0, len(missing), self.commit_every):
            answers: dict[_Question, float] = {}
            try:
                for question, verdict in ask(missing[start : start + self.commit_every]):
                    answers[question] = verdict
            finally:  # also what came before an error
                self._counts["misses"] += len(answers)
                self._store.write({keys[question]: v for question, v in answers.items() if math.isfinite(v)})
            verdicts.update(answers)
        return verdicts


class _CachedScores(CachedJudge, PointwiseJudge):
    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        asked = [(one.prompt, unscored(candidate)) for one in sets for candidate in one.candidates]
        identity = self.identity if asked else ""
        found = self._found(asked, lambda question: _key_of_score(identity, *question), self._ask)
        return [[found[one.prompt, unscored(candidate)] for candidate in one.candidates] for one in sets]

    def _ask(self, questions: list[_Answer]) -> Iterator[tuple[_Answer, float]]:
        answers: dict[Prompt, list[Candidate]] = {}
        for prompt, candidate in questions:
            answers.setdefault(prompt, []).append(candidate)
        sets = [CandidateSet(prompt, tuple(some)) for prompt, some in answers.items()]
        verdicts = {
            (one.prompt, candidate): score
            for one, scores in zip(sets, self.judge.score(sets), strict=True)
            for candidate, score in zip(one.candidates, scores, strict=True)
        }
        return iter(verdicts.items())


def _key_of_score(identity: str, prompt: Prompt, candidate: Candidate) -> bytes:
    return _key(identity, prompt, candidate.text, *([candidate.turn] if candidate.turn else []))


class _CachedComparisons(CachedJudge, PairwiseJudge):
    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        """See :meth:`PairwiseJudge.compare`."""
        identity = self.identity if comparisons else ""
        found = self._found(comparisons, lambda c: _key(identity, c.prompt, c.first, c.second), self.judge.verdicts)
        return [found[comparison] for comparison in comparisons]

    def votes(self, forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
        """The wrapped judge's."""
        votes: np.ndarray = self.judge.votes(forward, backward)
        return votes

    def ranking(self, forward: np.ndarray) -> list[float]:
        """The wrapped judge's."""
        ranking: list[float] = self.judge.ranking(forward)
        return ranking


def _key(identity: str, prompt: Prompt, *answers: str) -> bytes:
    """16 bytes for what a verdict depends on. One answer: its score. Two: P(first wins)."""
    beyond = [] if is_plain(prompt) else [prompt_identity(prompt)]
    question = json.dumps([identity, [[message.role, message.content] for message in prompt], answers, *beyond])
    return hashlib.blake2b(question.encode(), digest_size=16).digest()
