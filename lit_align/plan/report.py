"""A plan as a table and as a record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_align.plan.fit import CUDA_CONTEXT, Change, fits
from lit_align.plan.simulate import Memory, Setup
from lit_align.plan.tracker import ITEMS

_GIB, _MIB = 1 << 30, 1 << 20


def as_record(
    setup: Setup, memory: Memory, card: int | None, changes: Sequence[Change], left_out: Sequence[str]
) -> dict[str, Any]:
    """All of a plan in plain types, sizes in bytes.

    Args:
        setup: the run.
        memory: what it holds.
        card: bytes of the card; None where none is known.
        changes: what makes it fit.
        left_out: what is not counted.
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
            {"setting": one.setting, "peak": one.peak, "fits": card is not None and fits(one.peak, card)}
            for one in changes
        ],
        "not_counted": list(left_out),
    }


def readable(plan: dict[str, Any]) -> str:
    """The table and the verdict, as lines to print."""
    trained, frozen = plan["parameters"]["trained"], plan["parameters"]["frozen"]
    lines = [
        f"{plan['model']}: {trained:,} parameters trained, {frozen:,} frozen",
        f"{plan['pairs']} pairs of {plan['prompt_tokens']} + {plan['completions']} x {plan['completion_tokens']} tokens"
        + (f"; {plan['sequences_sampled']} sequences sampled at once" if plan["sequences_sampled"] else ""),
        "",
        *_table(plan),
        "",
        *_verdict(plan),
    ]
    lines += [f"Not counted: {note}" for note in plan["not_counted"]]
    return "\n".join(lines)


def _table(plan: dict[str, Any]) -> list[str]:
    """Items down, parts of the run across, each at its own peak."""
    unit, name = (_GIB, "GiB") if plan["peak"] >= _GIB else (_MIB, "MiB")
    moments: dict[str, dict[str, int]] = plan["moments"]
    rows = [[name, *moments]]
    for item in ITEMS:
        sizes = [items.get(item, 0) for items in moments.values()]
        if any(sizes):
            rows.append([item, *(f"{size / unit:.2f}" for size in sizes)])
    rows.append(["together", *(f"{plan['totals'][moment] / unit:.2f}" for moment in moments)])
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _verdict(plan: dict[str, Any]) -> list[str]:
    totals = plan["totals"]
    peak = f"Peak {_size(plan['peak'])}, in the part `{max(totals, key=lambda moment: totals[moment])}`"
    if plan["card"] is None:
        return [f"{peak}. --card_gib 12 tells whether that fits a card."]
    card = f"a card of {_size(plan['card'])} (CUDA takes about {_size(plan['cuda_context'])} of it)"
    if plan["fits"]:
        return [f"{peak}: fits {card}."]
    lines = [f"{peak}: does not fit {card}."]
    changes = plan["changes"]
    if changes:
        lines.append("To change, one on top of the other:")
        lines += [f"  {one['setting']}  ->  peak {_size(one['peak'])}" for one in changes]
    if not changes or not changes[-1]["fits"]:
        lines.append("Even so it does not fit: take a smaller model or a larger card.")
    return lines


def _size(size: int) -> str:
    return f"{size / _GIB:.2f} GiB" if size >= _GIB else f"{size / _MIB:.0f} MiB"
