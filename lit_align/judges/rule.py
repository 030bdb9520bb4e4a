"""The judge that is a Python function."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

from lit_align.judges.base import PointwiseJudge
from lit_align.judges.vote_arrays import ABSTAINED
from lit_align.records import CandidateSet, prompt_text

Rule = Callable[[str, list[str], dict[str, Any]], Sequence[float]]


class RuleJudge(PointwiseJudge):
    """Scores with any Python function `rule(prompt, candidates, row) -> scores`.

    `prompt` is the prompt's text, `candidates` the completions' texts, `row` the data row as it was read. The
    function returns one number for each candidate, higher is better; a number that is not finite is an abstention.
    Let the rule grade answers: with a yes/no rule most comparisons are ties, and the boundary score says little.

    Args:
        rule: the function, or its import path such as `my_rules.constraint`.

    Raises:
        ValueError: there is no function at the import path.

    Example:
        >>> from lit_align.records import Candidate, Message
        >>> judge = RuleJudge(lambda prompt, candidates, row: [-len(c) for c in candidates])
        >>> judge.score([CandidateSet((Message("user", "Hi"),), (Candidate("Hello"), Candidate("Hey")))])
        [[-5.0, -3.0]]
    """

    free = True

    def __init__(self, rule: str | Rule) -> None:
        self._rule: Rule = _import_rule(rule) if isinstance(rule, str) else rule
        name = rule if isinstance(rule, str) else f"{rule.__module__}.{getattr(rule, '__qualname__', rule)}"
        self.identity = f"rule:{name}"

    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        """Calls the rule once for each set.

        Raises:
            TypeError: the rule does not return numbers.
            ValueError: it does not return one number per candidate.
        """
        return [self._score_set(candidate_set) for candidate_set in sets]

    def _score_set(self, candidate_set: CandidateSet) -> list[float]:
        prompt = prompt_text(candidate_set.prompt)
        texts = [candidate.text for candidate in candidate_set.candidates]
        call = f"{self.identity} on {candidate_set.where or repr(prompt[:60])}"
        try:
            answer = self._rule(prompt, texts, dict(candidate_set.row))
        except Exception as error:  # an error in the user's rule stays as it is
            error.add_note(f"raised by {call}, called with (prompt, candidates, row)")
            raise
        try:
            scores = [_number(value) for value in answer]
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{call} returned {answer!r}; expected a list with one number for each candidate"
            ) from error
        if len(scores) != len(texts):
            raise ValueError(f"{call} returned {len(scores)} scores for {len(texts)} candidates")
        return scores


def _number(value: Any) -> float:
    if isinstance(value, str):
        raise TypeError(value)  # float("3") would pass
    number = float(value)
    return number if math.isfinite(number) else ABSTAINED


def _import_rule(path: str) -> Rule:
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
