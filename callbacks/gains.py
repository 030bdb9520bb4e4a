"""Learns in the run itself which source brings more, with the boundary score as its first guess."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer

from lit_align.boundary import BoundaryCallback, BoundaryResult, Choice, Decision, MeasurementOutcome
from lit_align.boundary.gains import Belief, believe, score_says, stretches, with_lead
from lit_align.records import Stage
from lit_align.seeding import derive_seed


class GainSchedule(BoundaryCallback):
    """Takes the source that brought more so far, and tries the other one as long as it may be better.

    Each measurement judges answers of the policy beside static ones anyway, so how far the policy is ahead is known
    step by step, and with it what the training since the last measurement brought. This is a bandit with two arms:
    Thompson sampling (Thompson, "On the likelihood that one unknown probability exceeds another", Biometrika 25, 1933)
    over the gains, of which old ones are forgotten, because they change as the policy learns (discounted Thompson
    sampling: arXiv 1707.09727). The boundary score is the prior: the run begins as it says, and it counts the less the
    more is known of the gains. While p is the probability that the source not taken is better, p / 2 of the pairs come
    from it all the same.

    There is no threshold on gains and no assumption on the judge's scale. Measurements of many prompts tell gains
    apart sooner: `sequential: false`, or a larger `max_prompts`.

    ```yaml
    boundary:
      class_path: callbacks.GainSchedule
      init_args: {every_n_steps: 20, max_prompts: 64, per: second}
    ```

    Args:
        per: what a gain is divided by: "step" (and so by its pairs), or "second" of training, sampling of rounds
            included. Wall time differs from run to run, so that with "second" a resumed run is like an uninterrupted
            one, but not equal to it.
        trust: how often the boundary score is right about the better source, in [0.5, 1); 0.8 in docs/evidence.md.
        memory: measurements after which a gain counts half, above 0.
        seed: of the draws.
        kwargs: further arguments of BoundaryCallback.
    """

    def __init__(
        self, per: Literal["step", "second"] = "step", trust: float = 0.8, memory: float = 2.0, seed: int = 0,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        if per not in ("step", "second") or not 0.5 <= trust < 1 or memory <= 0:
            raise ValueError(
                "expected per 'step' or 'second', trust in [0.5, 1) and memory above 0, "
                f"got per {per!r}, trust {trust} and memory {memory}"
            )
        self.per = per
        self.trust = trust
        self.memory = memory
        self.seed = seed

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> MeasurementOutcome:
        """Measures, and keeps how far the policy is ahead among the characteristics."""
        outcome = super().measure(trainer, pl_module)
        return replace(outcome, result=with_lead(outcome.result, outcome.judged))

    def decide(self, step: int, result: BoundaryResult | None, history: Sequence[Decision]) -> Choice | None:
        """Draws the source by what is believed of the gains; the first one is the score's."""
        by_score = super().decide(step, result, history)
        if by_score is None or result is None or not result.informative:
            return by_score
        prior = score_says(result, self.trust)
        seconds = self.budget.training if self.per == "second" else None
        belief = believe(stretches(history, step, result, seconds), prior, self.memory)
        if belief is None:
            on_better = prior
            takes_on = on_better >= 0.5
            reason = f"no gains known yet: {_source(takes_on)} pairs, as the score says"
        else:
            on_better = belief.on_better
            takes_on = random.Random(derive_seed(self.seed, "gains", step)).random() < on_better
            reason = _because(belief, takes_on, self.per)
        doubt = min(on_better, 1 - on_better) / 2
        stage = Stage.FINE_TUNING if takes_on else Stage.INJECTION
        return Choice(1 - doubt if takes_on else doubt, reason, stage)


def _because(belief: Belief, takes_on: bool, per: str) -> str:
    on_is_better = belief.on_better >= 0.5
    chance = 100 * max(belief.on_better, 1 - belief.on_better)
    return (
        f"gain a {per}: {belief.on:+.3g} (error {belief.on_error:.2g}) by on-policy, {belief.off:+.3g} (error "
        f"{belief.off_error:.2g}) by off-policy pairs; {_source(on_is_better)} better with {chance:.0f} %"
        + ("" if takes_on == on_is_better else f", tries {_source(takes_on)}")
    )


def _source(on: bool) -> str:
    return "on-policy" if on else "off-policy"
