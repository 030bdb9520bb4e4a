"""How good is a judge? Its verdicts on labelled pairs, measured and put into words."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence

from lit_align.judges.base import Judge, PairVerdict
from lit_align.judges.quality import quality_of
from lit_align.judges.quality_record import Calibration, JudgeQuality, LengthBias, OrderConsistency, Share
from lit_align.records import CandidateSet, PreferencePair
from lit_align.rows.alike import group_alike
from lit_align.seeding import derive_seed

WIDTH = 80
_PAIRS_A_CALL = 32  # judged together: large enough to batch, small enough for a bar that moves


def judge_quality(
    judge: Judge,
    pairs: Sequence[PreferencePair],
    confidence: float = 0.95,
    progress: Callable[[int], object] | None = None,
) -> JudgeQuality:
    """Asks a judge about labelled pairs and measures what it says.

    A judge that compares is asked in both orders. Any other sees the two answers of a pair as one set, in an order
    that is drawn for each pair. Where a judge's scores give probabilities (`Judge.gives_probabilities`, as those of
    a reward model do), they are measured, too.

    Args:
        judge: any judge.
        pairs: `chosen` is the better answer. Lengths are those of the texts in characters.
        confidence: of the intervals, in (0, 1).
        progress: called with the number of pairs judged since the last call.

    Raises:
        ValueError: where there are no pairs, or the judge gives something other than scores and probabilities.
    """
    if not pairs:
        raise ValueError("expected labelled pairs to measure the judge on, got none")
    verdicts: list[PairVerdict] = []
    for start in range(0, len(pairs), _PAIRS_A_CALL):
        batch = pairs[start : start + _PAIRS_A_CALL]
        verdicts += _ask(judge, batch)
        if progress is not None:
            progress(len(batch))
    alike = group_alike(pair.prompt for pair in pairs)
    return quality_of(
        judge.identity,
        [verdict.first_wins for verdict in verdicts],
        [(len(pair.chosen.text), len(pair.rejected.text)) for pair in pairs],
        orders=[verdict.orders for verdict in verdicts if verdict.orders is not None] or None,
        groups=[alike[pair.prompt] for pair in pairs],
        confidence=confidence,
    )


def _ask(judge: Judge, pairs: Sequence[PreferencePair]) -> Iterator[PairVerdict]:
    """The verdicts on pairs, the better answer as the first. The judge sees them in an order drawn for each pair."""
    turned = [derive_seed(0, "order", pair.chosen.text, pair.rejected.text) % 2 == 1 for pair in pairs]
    verdicts = judge.judge_pairs([_as_set(pair, is_turned) for pair, is_turned in zip(pairs, turned, strict=True)])
    for verdict, is_turned in zip(verdicts, turned, strict=True):
        yield _turn(verdict) if is_turned else verdict


def _as_set(pair: PreferencePair, is_turned: bool) -> CandidateSet:
    answers = (pair.rejected, pair.chosen) if is_turned else (pair.chosen, pair.rejected)
    return CandidateSet(pair.prompt, answers, pair.row, pair.where)


def _turn(verdict: PairVerdict) -> PairVerdict:
    orders = None if verdict.orders is None else (verdict.orders[1], verdict.orders[0])
    return PairVerdict(1 - verdict.first_wins, orders)


def readable(quality: JudgeQuality, unit: str = "characters") -> str:
    """The quality as text for a terminal of 80 columns.

    Args:
        quality: what was measured.
        unit: what lengths were counted in.
    """
    judged = quality.pairs - quality.abstentions
    lines = [
        f"Judge: {quality.judge}",
        f"Pairs: {quality.pairs}, {quality.abstentions} abstentions, {quality.ties} ties",
        _line("accuracy", quality.accuracy),
        *_length(quality.length, unit),
        *(_order(quality.order) if quality.order is not None else ()),
        *(_calibration(quality.calibration) if quality.calibration is not None else ()),
    ]
    return "\n".join([*lines, textwrap.fill(_verdict(quality, judged), WIDTH)])


def _verdict(quality: JudgeQuality, judged: int) -> str:
    if judged == 0:
        return "It gave no verdict at all."
    if quality.warnings:
        return " ".join(quality.warnings)
    length = quality.length
    if min(length.longer_is_right.low, length.longer_is_wrong.low) > 0.5:
        return "It finds the better answer whether that is the longer or the shorter one."
    return (
        "It finds the better answer more often than a coin; whether by more than its length these pairs do not tell "
        "(they would where both intervals, of the longer and of the shorter answers, lay above 50 %)."
    )


def _line(name: str, share: Share, note: str = "") -> str:
    if share.value is None:
        return f"  {name:<30} no such pairs"
    interval = f"({100 * share.low:.1f} to {100 * share.high:.1f} %)"
    return f"  {name:<30} {100 * share.value:5.1f} % {interval:<19} of {share.count}{note}"


def _length(length: LengthBias, unit: str) -> list[str]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:+.2f}"

    return [
        _line("where the longer is better", length.longer_is_right),
        _line("where the shorter is better", length.longer_is_wrong),
        _line("rule: the longer is better", length.longer_rule),
        f"  preference with length ({unit}): correlation {number(length.correlation)}, of the labels "
        f"{number(length.of_labels)}",
    ]


def _order(order: OrderConsistency) -> list[str]:
    return [
        _line("same verdict in both orders", order.same_verdict),
        _line("the place decides", order.position_decides, f", the first {order.first_place} times"),
    ]


def _calibration(calibration: Calibration) -> list[str]:
    lines = [f"  calibration error {calibration.error:.3f}, Brier score {calibration.brier:.3f} (a coin: 0.25)"]
    lines.append("  confidence   mean   right   pairs")
    lines += [
        f"  {group.low:.2f}-{group.high:.2f}  {100 * group.confidence:5.1f} % {100 * group.accuracy:5.1f} % "
        f"{group.count:6}"
        for group in calibration.bins
    ]
    return lines
