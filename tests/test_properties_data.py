"""What holds of any data: pairs come once a pass, on any number of ranks, from any point of a resume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lit_align.batch import TokenizedPair, collate
from lit_align.data.packing import pack, unpack
from lit_align.data.scheduler import BatchScheduler, OffPolicySource, OnPolicySource
from lit_align.data.selection import (
    AllAboveMargin,
    BestRandom,
    BestWorst,
    MostDifferent,
    PairSelector,
    QualityDiversity,
)
from lit_align.records import Candidate, CandidateSet, Message
from tests.helpers.data_fakes import through_a_file
from tests.helpers.properties import TEXTS, examples, tokenized_pairs


def numbered(number: int, on_policy: bool = False) -> TokenizedPair:
    """A pair that is known by its prompt; its length depends on its number."""
    answer = np.arange(1 + number * 7 % 5, dtype=np.int32)
    return TokenizedPair(np.array([number], dtype=np.int32), answer, answer, 0.0, on_policy)


def make_round(indices: Sequence[int], number: int) -> Any:
    """Pairs of a round: one or two of each prompt, none of some."""
    pairs = [numbered(100 * number + 2 * i + k, True) for i in indices for k in range((i + number) % 3)]
    return SimpleNamespace(pairs=pairs, stats={})


@dataclass(frozen=True)
class Run:
    """How a run takes its data: steps of some micro-batches, each with a share."""

    pairs: int
    batch_size: int
    steps: list[tuple[int, float]]

    def scheduler(self, rank: int, world: int) -> Any:
        view: Any = SimpleNamespace(rank=rank, world=world, needs_target=False)
        view.count_sorted_together = lambda: view.accumulate
        off = OffPolicySource([numbered(n) for n in range(self.pairs)], seed=3)
        on = OnPolicySource(7, 4, 3, make_round, lambda number: make_round([1, 2], number) if number % 3 == 2 else None)
        return BatchScheduler(off, on, self.batch_size, 3, view, lambda count: None)

    def schedulers(self, world: int, state: dict[str, Any] | None = None, amid_step: bool = True) -> list[Any]:
        made = [self.scheduler(rank, world) for rank in range(world)]
        if state is not None:
            for scheduler in made:
                scheduler.load_state_dict(through_a_file(state), amid_step)
        return made

    def play(self, schedulers: list[Any], start: int = 0, stop: int | None = None) -> list[list[list[TokenizedPair]]]:
        """[micro-batches][ranks] pairs from one micro-batch of the run to another."""
        sizes = [(accumulate, share, n) for accumulate, share in self.steps for n in range(accumulate)]
        played = []
        for accumulate, share, done in sizes[start:stop]:
            for scheduler in schedulers:
                scheduler.run.accumulate = accumulate - done
            played.append([scheduler.next_pairs(share) for scheduler in schedulers])
        return played


RUNS = st.builds(
    Run,
    pairs=st.integers(1, 12),
    batch_size=st.integers(1, 4),
    steps=st.lists(st.tuples(st.integers(1, 3), st.sampled_from([0.0, 0.0, 0.3, 1.0])), min_size=1, max_size=6),
)
WORLDS = st.integers(1, 4)


def taken(played: list[Any], on_policy: bool) -> Counter[int]:
    pairs = (pair for ranks in played for batch in ranks for pair in batch)
    return Counter(int(pair.prompt[0]) for pair in pairs if pair.on_policy is on_policy)


def assert_each_once_a_pass(counts: Counter[int], size: int) -> None:
    passes, more = divmod(counts.total(), size)
    assert Counter(counts[n] for n in range(size)) == +Counter({passes: size - more, passes + 1: more})


@examples(60)
@given(run=RUNS, world=WORLDS)
def test_each_static_pair_comes_once_a_pass_and_each_sampled_one_at_most_once(run: Run, world: int) -> None:
    played = run.play(run.schedulers(world))
    assert all(len(batch) == run.batch_size for ranks in played for batch in ranks)
    assert_each_once_a_pass(taken(played, False), run.pairs)
    assert not taken(played, True) or max(taken(played, True).values()) == 1


@examples(60)
@given(run=RUNS, world=WORLDS, data=st.data())
def test_a_run_goes_on_from_any_micro_batch_as_if_never_stopped(run: Run, world: int, data: st.DataObject) -> None:
    whole = run.play(run.schedulers(world))
    point = data.draw(st.integers(0, len(whole)))
    stopped = run.schedulers(world)
    run.play(stopped, 0, point)
    states = [scheduler.state_dict() for scheduler in stopped]
    rest = run.play(run.schedulers(world, states[0]), point)
    assert [[list(map(repr, batch)) for batch in ranks] for ranks in rest] == [
        [list(map(repr, batch)) for batch in ranks] for ranks in whole[point:]
    ]


@examples(60)
@given(run=RUNS, worlds=st.tuples(WORLDS, WORLDS), data=st.data())
def test_another_number_of_ranks_takes_each_pair_once_a_pass_too(
    run: Run, worlds: tuple[int, int], data: st.DataObject
) -> None:
    point = data.draw(st.integers(0, sum(accumulate for accumulate, _ in run.steps)))
    ends = np.cumsum([0, *(accumulate for accumulate, _ in run.steps)])
    begun = int(ends[ends <= point].max())  # of the step that the run is stopped in
    before = run.schedulers(worlds[0])
    first = run.play(before, 0, point)
    rest = run.play(run.schedulers(worlds[1], before[0].state_dict(), amid_step=False), begun)
    counts = taken(first[:begun], False) + taken(rest, False)
    assert_each_once_a_pass(counts, run.pairs)
    sampled = taken(first[:begun], True) + taken(rest, True)
    assert not sampled or max(sampled.values()) == 1


PAIRS = st.lists(tokenized_pairs(), min_size=1, max_size=5)


@examples(60)
@given(pairs=PAIRS)
def test_pairs_come_back_whole_from_a_checkpoint(pairs: list[TokenizedPair]) -> None:
    back = unpack(through_a_file(pack(pairs)))
    assert len(back) == len(pairs) and unpack(through_a_file(pack([]))) == []
    for got, expected in zip(back, pairs, strict=True):
        for name in ("prompt", "chosen", "rejected", "target"):
            assert_same_ids(getattr(got, name), getattr(expected, name))
        assert repr((got.margin, got.on_policy)) == repr((expected.margin, expected.on_policy))
        assert (got.reference is None) is (expected.reference is None)
        if got.reference is not None:
            assert got.reference.version == expected.reference.version
            assert got.reference.chosen.tobytes() == expected.reference.chosen.tobytes()
            assert got.reference.rejected.tobytes() == expected.reference.rejected.tobytes()


def assert_same_ids(got: np.ndarray | None, expected: np.ndarray | None) -> None:
    assert (got is None) is (expected is None)
    assert got is None or expected is None or (got.dtype == expected.dtype and got.tolist() == expected.tolist())


@examples(60)
@given(pairs=PAIRS, pad_id=st.integers(0, 9))
def test_a_batch_holds_each_token_once_whatever_the_padding(pairs: list[TokenizedPair], pad_id: int) -> None:
    batch = collate(pairs, pad_id, [None] * len(pairs))
    sides = [("prompt", batch.prompt), ("chosen", batch.chosen), ("rejected", batch.rejected), ("target", batch.target)]
    assert (batch.target is not None) is all(pair.target is not None for pair in pairs)
    for name, padded in sides:
        for row, pair in enumerate(pairs if padded is not None else []):
            assert padded.ids[row][padded.mask[row]].tolist() == getattr(pair, name).tolist()
            assert set(padded.ids[row][~padded.mask[row]].tolist()) <= {pad_id}
    longest = 0
    for pair in pairs:
        target = [] if batch.target is None or pair.target is None else list(pair.target)
        longest = max(longest, sum(len(part) for part in (pair.prompt, pair.chosen, pair.rejected, target)))
    assert batch.longest_row == longest


SELECTORS = st.sampled_from(
    [BestWorst(), BestRandom(), AllAboveMargin(), AllAboveMargin(2.5), MostDifferent(), QualityDiversity(0.3)]
)
SCORED = st.lists(
    st.builds(
        Candidate,
        st.sampled_from(["a b", "a c", "b", "c d e", "a b c", "d"]) | TEXTS,
        score=st.none()
        | st.sampled_from([0.0, 1.0, 2.5, 5.0])
        | st.floats(-1e6, 1e6)
        | st.sampled_from([np.nan, np.inf, -np.inf]),
    ),
    max_size=7,
)


@examples(150)
@given(selector=SELECTORS, candidates=SCORED, seed=st.integers(0, 9))
def test_a_chosen_answer_scores_higher_than_the_rejected_one(
    selector: PairSelector, candidates: list[Candidate], seed: int
) -> None:
    scored = CandidateSet((Message("user", "Hi."),), tuple(candidates), {"target": "t"}, "x, row 1")
    counts: Counter[str] = Counter()
    pairs = selector.select(scored, seed, counts)
    judged = [c for c in candidates if c.score is not None and np.isfinite(c.score)]
    texts = {c.text for c in judged}
    for pair in pairs:
        assert pair.chosen in judged and pair.rejected in judged and pair.chosen.text != pair.rejected.text
        assert pair.margin == pair.chosen.score - pair.rejected.score > 0
        assert (pair.prompt, pair.target, pair.where) == (scored.prompt, "t", "x, row 1")
        assert not isinstance(selector, AllAboveMargin) or pair.margin > selector.margin
    assert counts["abstentions"] == len(candidates) - len(judged) and counts["duplicates"] == len(judged) - len(texts)
    possible = len(texts) * (len(texts) - 1) // 2 if isinstance(selector, AllAboveMargin) else int(len(texts) > 1)
    assert len(pairs) + counts["ties"] + counts["below_margin"] == possible
    assert bool(counts["single_candidate"]) is (len(texts) < 2)
    assert selector.select(scored, seed, Counter()) == pairs
    assert (
        selector.select(CandidateSet(scored.prompt, tuple(judged), scored.row, scored.where), seed, Counter()) == pairs
    )
