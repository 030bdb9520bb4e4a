"""The losses and schedules of the arms, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from callbacks import (
    Alternating,
    AlwaysOffPolicy,
    AlwaysOnPolicy,
    ConstantMixture,
    FixedSwitch,
    GainSchedule,
    LookAheadBoundary,
    MixtureBoundary,
)
from experiments.setup import Setup
from lit_align import DPO, BoundaryCallback, SLiCHF
from lit_align.losses import RPO, WPO, PreferenceLoss

LOSSES: dict[str, Callable[[], PreferenceLoss]] = {
    "rpo": lambda: RPO(beta=0.1, alpha=1.0),
    "dpo": lambda: DPO(beta=0.1),
    "slic": lambda: SLiCHF(),
    "wpo": lambda: WPO(RPO(beta=0.1, alpha=1.0)),
}
INJECTION = "rpo"
"""The loss of the injections and of whole runs; DPO on static pairs also makes the chosen answers less likely."""


def _boundary(setup: Setup, **settings: Any) -> BoundaryCallback:
    return BoundaryCallback(setup.every_n_steps, setup.run_prompts, num_candidates=2, batch_prompts=16, **settings)


SEMI_ONLINE = {"semi-online-2": 2, "semi-online-8": 8, "semi-online-32": 32}
"""Optimizer steps on each on-policy round, of the schedules that are semi-online (arXiv 2506.21495)."""

SCHEDULES: dict[str, Callable[[Setup], BoundaryCallback]] = {
    "off": lambda s: AlwaysOffPolicy(),
    "on": lambda s: AlwaysOnPolicy(),
    "off-then-on": lambda s: FixedSwitch(s.run_steps // 2),
    "on-then-off": lambda s: FixedSwitch(s.run_steps // 2, on_policy_first=True),
    "alternating": lambda s: Alternating(max(1, s.run_steps // 4)),
    "boundary": lambda s: _boundary(s, undecided="stay"),
    "hysteresis": lambda s: _boundary(s, undecided="stay", hysteresis=0.05),
    "follow": lambda s: _boundary(s, undecided="follow"),
    "follow-5%": lambda s: _boundary(s, undecided="follow", max_share_of_training=0.05),
    "follow-5%-fixed": lambda s: _boundary(s, undecided="follow", max_share_of_training=0.05, sequential=False),
    "look-ahead": lambda s: LookAheadBoundary(
        s.look_ahead_steps,
        every_n_steps=s.every_n_steps,
        max_prompts=s.run_prompts,
        batch_prompts=16,
        undecided="stay",
    ),
    "mixture": lambda s: MixtureBoundary(
        every_n_steps=s.every_n_steps, max_prompts=s.run_prompts, num_candidates=2, sequential=False
    ),
    "half": lambda s: ConstantMixture(0.5),
    "gains": lambda s: GainSchedule(
        every_n_steps=s.every_n_steps, max_prompts=s.run_prompts, num_candidates=2, batch_prompts=16
    ),
    **{name: lambda s: AlwaysOnPolicy() for name in SEMI_ONLINE},
}
