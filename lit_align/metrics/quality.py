"""Metrics of a judge's scores: their mean, best and spread, and the spread of log-likelihoods."""

from __future__ import annotations

from collections.abc import Sequence

from lit_align.metrics.base import CandidateMetric, PromptMean
from lit_align.metrics.functional import UNDEFINED, finite, mean_of, spread
from lit_align.records import CandidateSet


class MeanScore(CandidateMetric):
    """The mean score of a prompt's candidates, averaged over prompts, in the judge's unit.

    Scores that are None or not finite (abstentions) are left out; a prompt without a score is not counted.
    """

    higher_is_better = True

    def figure(self, candidate_set: CandidateSet) -> float:
        return mean_of(_scores(candidate_set))


class BestScore(CandidateMetric):
    """The best score among a prompt's candidates, averaged over prompts, in the judge's unit.

    It rises with the number of candidates. Scores that are None or not finite (abstentions) are left out; a prompt
    without a score is not counted.
    """

    higher_is_better = True

    def figure(self, candidate_set: CandidateSet) -> float:
        return max(finite(_scores(candidate_set)), default=UNDEFINED)


class ScoreSpread(CandidateMetric):
    """The mean absolute difference of each two scores of a prompt, averaged over prompts, in the judge's unit.

    Scores that are None or not finite (abstentions) are left out; a prompt with fewer than two is not counted.
    """

    def figure(self, candidate_set: CandidateSet) -> float:
        return spread(_scores(candidate_set))


class LogLikelihoodSpread(PromptMean):
    """The mean absolute difference of each two candidates' log-likelihood, averaged over prompts, in nats a token.

    It is large if the model finds some candidates of a prompt likely and others not, as when they come from
    another model. `update` takes numbers, such as means of what :func:`lit_align.policy.sequence_logps` gives.
    """

    def update(self, values: Sequence[Sequence[float | None]]) -> None:
        """Counts prompts.

        Args:
            values: for each prompt the per-token mean log-likelihood of its candidates, in nats. None, NaN and
                infinite ones are left out; a prompt with fewer than two is not counted.
        """
        self.add(spread(log_likelihoods) for log_likelihoods in values)


def _scores(candidate_set: CandidateSet) -> list[float | None]:
    return [candidate.score for candidate in candidate_set.candidates]
