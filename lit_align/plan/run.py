"""Plans a configured run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer

from lit_align.console import show_activity
from lit_align.data import AlignmentDataModule
from lit_align.plan.fit import changes_to_fit
from lit_align.plan.report import as_record, format_plan
from lit_align.plan.setup import Setup, not_counted, setup_of
from lit_align.plan.simulate import Memory, simulate
from lit_align.training.module import AlignmentModule


@dataclass(frozen=True)
class Plan:
    """A plan to read (`text`) and to process (`record`)."""

    text: str
    record: dict[str, Any]


def plan_run(
    trainer: Trainer,
    module: AlignmentModule,
    data: AlignmentDataModule,
    card_gib: float | None = None,
    prompt_tokens: int | None = None,
    completion_tokens: int | None = None,
) -> Plan:
    """Computes the memory of a run, and finds changes if it does not fit the card.

    Args:
        trainer: the run's Trainer.
        module: the run's module, before `configure_model`.
        data: the run's data module, before `setup`.
        card_gib: memory of the card in GiB, above 0; None takes that of this machine's GPU, if it has one.
        prompt_tokens: see :func:`setup_of`.
        completion_tokens: see :func:`setup_of`.

    Raises:
        ValueError: `card_gib` is out of its range, or the lengths are not known.
    """
    if card_gib is not None and not card_gib > 0:
        raise ValueError(f"card_gib is the card's memory in GiB, above 0, but it is {card_gib}")
    card = _card() if card_gib is None else int(card_gib * (1 << 30))
    setup = setup_of(trainer, module, data, prompt_tokens, completion_tokens, on_gpu=card is not None)
    with show_activity(0, "planning", "parts") as bar:

        def simulate_with_bar(changed: Setup) -> Memory:
            bar.total = (bar.total or 0) + changed.parts
            return simulate(changed, bar.update)

        memory = simulate_with_bar(setup)
        changes = [] if card is None else changes_to_fit(setup, memory, card, simulate_with_bar)
    record = as_record(setup, memory, card, changes, not_counted(trainer, data, setup))
    return Plan(format_plan(record), record)


def _card() -> int | None:
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
