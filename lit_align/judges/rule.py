"""The judge that is a Python function."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

from lit_align.judges.base import ABSTAINED, PointwiseJudge, add_note
from lit_align.records import CandidateSet, prompt_text

Rule = Callable[[str, list[str], dict[str, Any]], Sequence[float]]


class RuleJudge(PointwiseJudge):
    """Scores with any Python function `rule(prompt, candidates, row) -> scores`.

    `prompt` is the prompt's text, `candidates` the completions' texts, `row` the data row as it was
    read; the function returns one number for each candidate, higher is better. A number that is not
    finite is an abstention. Let the rule grade: with a yes/no rule most comparisons are ties, and the
    boundary score says little.

    Args:
        rule: the function, or its import path such as `my_rules.constraint`.

    Raises:
        ValueError: the import path leads to nothing that can be called.

    Example:
        >>> from lit_align.records import Candidate, Message
        >>> judge = RuleJudge(lambda prompt, candidates, row: [-len(c) for c in candidates])
        >>> judge.score([CandidateSet((Message("user", "Hi"),), (Candidate("Hello"), Candidate("Hey")))])
        [[-5.0, -3.0]]
    """

    def __init__(self, rule: str | Rule) -> None:
        self._rule: Rule = _imported(rule) if isinstance(rule, str) else rule
        name = rule if isinstance(rule, str) else f"{rule.__module__}.{getattr(rule, '__qualname__', rule)}"
        self.identity = f"rule:{name}"

    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        """One call of the rule for each set.

        Raises:
            TypeError: the rule returned something other than numbers.
            ValueError: it returned another count than there are candidates.
        """
        return [self._score_one(one) for one in sets]

    def _score_one(self, one: CandidateSet) -> list[float]:
        texts = [candidate.text for candidate in one.candidates]
        where = f"{self.identity} on {one.where or repr(prompt_text(one.prompt)[:60])}"
        try:
            answer = self._rule(prompt_text(one.prompt), texts, dict(one.row))
        except Exception as error:  # the user's own fault: it stays as it is
            add_note(error, f"raised by {where}, called with (prompt, candidates, row)")
            raise
        try:
            scores = [_number(value) for value in answer]
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{where} returned {answer!r}; expected a list with one number for each candidate"
            ) from error
        if len(scores) != len(texts):
            raise ValueError(f"{where} returned {len(scores)} scores for {len(texts)} candidates")
        return scores


def _number(value: Any) -> float:
    if isinstance(value, str):
        raise TypeError(value)  # float("3") would pass
    number = float(value)
    return number if math.isfinite(number) else ABSTAINED


def _imported(path: str) -> Rule:
    module_name, _, name = path.rpartition(".")
    try:
        rule = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"no rule at {path!r} ({error}): expected the import path of a function, such as my_rules.constraint; "
            "its file must be in the working directory or installed"
        ) from error
    if not callable(rule):
        raise ValueError(f"{path!r} is a {type(rule).__name__}, expected a function")
    return rule
