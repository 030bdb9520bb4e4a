"""Quality of candidates by a judge's scores, and how far scores and log-likelihoods spread, as metrics."""

from __future__ import annotations

from collections.abc import Sequence

from lit_align.metrics.base import CandidateMetric, PromptMean
from lit_align.metrics.functional import UNDEFINED, finite, mean_of, spread
from lit_align.records import CandidateSet


class MeanScore(CandidateMetric):
    """The mean score of a prompt's candidates, averaged over prompts, in the judge's unit.

    Scores that are None or not finite (abstentions) are left out; a prompt without a score counts nowhere.
    """

    higher_is_better = True

    def figure(self, one: CandidateSet) -> float:
        return mean_of(_scores(one))


class BestScore(CandidateMetric):
    """The best score among a prompt's candidates, averaged over prompts, in the judge's unit.

    It rises with the number of candidates. Scores that are None or not finite (abstentions) are left out; a prompt
    without a score counts nowhere.
    """

    higher_is_better = True

    def figure(self, one: CandidateSet) -> float:
        return max(finite(_scores(one)), default=UNDEFINED)


class ScoreSpread(CandidateMetric):
    """The mean absolute difference of each two scores of a prompt, averaged over prompts, in the judge's unit.

    Scores that are None or not finite (abstentions) are left out; a prompt with fewer than two counts nowhere.
    """

    def figure(self, one: CandidateSet) -> float:
        return spread(_scores(one))


class LogLikelihoodSpread(PromptMean):
    """The mean absolute difference of each two candidates' log-likelihood, averaged over prompts, in nats a token.

    Large where a model finds some candidates of a prompt likely and others not: candidates that come from beyond it.
    Takes numbers: those of a model's candidates come from :func:`lit_align.data.likelihood.mean_logps`.
    """

    def update(self, values: Sequence[Sequence[float | None]]) -> None:
        """Counts some prompts.

        Args:
            values: for each prompt the per-token mean log-likelihood of its candidates, in nats. None, NaN and
                infinite ones are left out; a prompt with fewer than two counts nowhere.
        """
        self.add(spread(of_prompt) for of_prompt in values)


def _scores(one: CandidateSet) -> list[float | None]:
    return [candidate.score for candidate in one.candidates]
