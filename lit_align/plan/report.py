"""Formats a plan as a table and as a record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_align.markdown import markdown_table
from lit_align.plan.fit import CUDA_CONTEXT, Change, fits
from lit_align.plan.setup import Setup
from lit_align.plan.simulate import Memory
from lit_align.plan.tracker import ITEMS


def as_record(
    setup: Setup, memory: Memory, card: int | None, changes: Sequence[Change], not_counted: Sequence[str]
) -> dict[str, Any]:
    """Converts a plan to plain types, with sizes in bytes.

    Args:
        setup: the run.
        memory: the memory that it takes.
        card: bytes of the card; None if none is known.
        changes: changes that make it fit.
        not_counted: parts that the plan leaves out, in words.
    """
    return {
        "model": setup.policy.model,
        "pairs": setup.batch_size,
        "prompt_tokens": setup.prompt_tokens,
        "completions": setup.completions,
        "completion_tokens": setup.completion_tokens,
        "sequences_sampled": setup.sequences,
        "new_tokens": setup.new_tokens,
        "parameters": {"trained": memory.trained, "frozen": memory.frozen},
        "moments": memory.moments,
        "totals": memory.totals,
        "peak": memory.peak,
        "card": card,
        "cuda_context": CUDA_CONTEXT,
        "fits": None if card is None else fits(memory.peak, card),
        "changes": [
            {"setting": change.setting, "peak": change.peak, "fits": card is not None and fits(change.peak, card)}
            for change in changes
        ],
        "not_counted": list(not_counted),
    }


def format_plan(plan: dict[str, Any]) -> str:
    """Formats a plan's record as a table with the verdict, to print."""
    trained = plan["parameters"]["trained"]
    frozen = plan["parameters"]["frozen"]
    sampled = f"; {plan['sequences_sampled']} sequences sampled at once" if plan["sequences_sampled"] else ""
    lines = [
        f"{plan['model']}: {trained:,} parameters trained, {frozen:,} frozen",
        f"{plan['pairs']} pairs of {plan['prompt_tokens']} + {plan['completions']} x {plan['completion_tokens']} tokens"
        f"{sampled}",
        "",
        _table(plan),
        "",
        *_verdict(plan),
        *(f"Not counted: {part}" for part in plan["not_counted"]),
    ]
    return "\n".join(lines)


def _table(plan: dict[str, Any]) -> str:
    """A row for each item, a column for each part of the run, at the part's own peak."""
    moments: dict[str, dict[str, int]] = plan["moments"]
    rows = {item: [items.get(item, 0) for items in moments.values()] for item in ITEMS}
    rows["together"] = list(plan["totals"].values())
    cells = [[item, *map(_gib, sizes)] for item, sizes in rows.items() if any(sizes)]
    return markdown_table([["GiB", *moments], *cells], aligned=True)


def _verdict(plan: dict[str, Any]) -> list[str]:
    totals = plan["totals"]
    peak = f"Peak {_gib(plan['peak'])} GiB, in the part `{max(totals, key=lambda part: totals[part])}`"
    if plan["card"] is None:
        return [f"{peak}. --card_gib 12 tells whether that fits a card."]
    card = f"a card of {_gib(plan['card'])} GiB (CUDA takes about {_gib(plan['cuda_context'])} of it)"
    if plan["fits"]:
        return [f"{peak}: fits {card}."]
    changes = plan["changes"]
    lines = [f"  {change['setting']}  ->  peak {_gib(change['peak'])} GiB" for change in changes]
    if changes and changes[-1]["fits"]:
        return [f"{peak}: does not fit {card}.", "To change, one on top of the other:", *lines]
    nearest = ["The nearest, all at once:", *(line.replace(", ", "\n  ") for line in lines)] if changes else []
    advice = "No setting that is known here makes it fit: take a smaller model or a larger card."
    return [f"{peak}: does not fit {card}.", advice, *nearest]


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
