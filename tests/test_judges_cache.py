"""The verdict cache: pays once, survives kill -9, several writers, full disks and files that are no cache."""

from __future__ import annotations

import copy
import math
import multiprocessing
import os
import pickle
import resource
import signal
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from lit_align.judges import (
    CachedJudge,
    CombinedJudge,
    Comparison,
    Judge,
    JudgePart,
    PairRM,
    PairwiseJudge,
    PointwiseJudge,
    RecordedScores,
    RuleJudge,
)
from lit_align.judges.verdict_store import VerdictStore
from lit_align.records import Candidate, CandidateSet, Message
from tests.helpers.candidates import make_set

NAN = math.nan
FORK = multiprocessing.get_context("fork")


class Lengths(PointwiseJudge):
    """The length of an answer; counts what it is asked for. "why?" is an abstention, "oo" gives infinity."""

    cacheable = True

    def __init__(self, identity: str = "lengths") -> None:
        self.identity = identity
        self.asked: list[list[str]] = []

    def score(self, sets: Sequence[CandidateSet]) -> list[list[float]]:
        self.asked.append([candidate.text for candidate_set in sets for candidate in candidate_set.candidates])
        odd = {"why?": NAN, "oo": math.inf}
        return [[odd.get(c.text, len(c.text) / 3) for c in candidate_set.candidates] for candidate_set in sets]


class Longer(PairwiseJudge):
    """Prefers the longer answer, and the first place; counts what it is asked for."""

    identity = "longer"

    def __init__(self) -> None:
        self.asked: list[list[tuple[str, str]]] = []

    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        self.asked.append([(c.first, c.second) for c in comparisons])
        return [
            NAN if "?" in c.first + c.second else 1 / (1 + math.exp(len(c.second) - len(c.first) - 0.3))
            for c in comparisons
        ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "verdicts.sqlite"


def cached(judge: Judge, path: Path, **kwargs: Any) -> Any:
    return CachedJudge(judge, str(path), **kwargs)


# -- paying once


def test_scores_are_paid_once_and_only_what_is_missing_is_asked_for(path: Path) -> None:
    first, sets = Lengths(), [make_set("p", "a", "bb", "a"), make_set("q", "a")]
    assert cached(first, path).score(sets) == [[1 / 3, 2 / 3, 1 / 3], [1 / 3]]
    assert first.asked == [["a", "bb", "a"]], "one call, each answer of a prompt once"
    second, third = Lengths(), Lengths()
    again = cached(second, path)
    assert again.score(sets) == [[1 / 3, 2 / 3, 1 / 3], [1 / 3]] and second.asked == []
    (votes,) = cached(third, path).cross_votes([make_set("p", "new one", "bb")], [make_set("p", "a", "dddd")])
    np.testing.assert_array_equal(votes, [[1, 1], [1, 0]])
    assert third.asked == [["new one", "dddd"]]
    assert (again.hits, again.misses) == (3, 0)


def test_comparisons_are_paid_once_in_each_order(path: Path) -> None:
    sets, plain = [make_set("p", "a", "bbb", "cc")], Longer()
    expected, votes = plain.score(sets), plain.cross_votes([make_set("p", "a")], [make_set("p", "bbb", "dddd")])
    first, second = Longer(), Longer()
    assert cached(first, path).score(sets) == expected
    assert len(first.asked) == 1 and len(set(first.asked[0])) == 6
    judge = cached(second, path)
    assert judge.score(sets) == expected and second.asked == []
    np.testing.assert_array_equal(judge.cross_votes([make_set("p", "a")], [make_set("p", "bbb", "dddd")]), votes)
    assert second.asked == [[("a", "dddd"), ("dddd", "a")]]
    assert (judge.hits, judge.misses) == (6 + 2, 2)


def test_the_ranking_and_the_votes_stay_the_wrapped_judges(path: Path) -> None:
    class Ranked(Longer):
        def ranking(self, forward: np.ndarray) -> list[float]:
            return PairRM.ranking(self, forward)  # type: ignore[arg-type]

        def votes(self, forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
            return np.sign(forward - backward)

    sets = [make_set("p", "a", "bbb", "cc")]
    for judge in (cached(Ranked(), path), cached(Ranked(), path)):
        np.testing.assert_allclose(judge.score(sets), [[-1.5, 1.5, 0.0]], atol=1e-9)  # mean length differences
        assert judge.cross_votes([make_set("p", "a")], [make_set("p", "bbb")])[0].tolist() == [[-1.0]]


def test_a_wrapped_judge_is_of_the_same_kind(path: Path) -> None:
    of_scores, of_comparisons = cached(Lengths(), path).stored, cached(Longer(), path).stored
    assert isinstance(of_scores, PointwiseJudge) and isinstance(of_comparisons, PairwiseJudge)
    assert not isinstance(of_scores, PairwiseJudge)
    assert cached(Lengths(), path).grades and not cached(Longer(), path).grades
    judge = cached(Lengths("other"), path)
    assert isinstance(judge, CachedJudge) and judge.identity == "other" and not judge.cacheable


@pytest.mark.parametrize("judge", [Lengths(), Longer()])
def test_a_class_of_ones_own_over_it_judges_and_stores_as_it_does(path: Path, judge: Judge) -> None:
    class Mine(CachedJudge):
        pass

    sets = [make_set("p", "a", "bb")]
    votes = judge.cross_votes(sets, sets)
    for hits in (False, True):
        mine = Mine(judge, str(path))
        assert mine.score(sets) == judge.score(sets) and (mine.hits > 0, mine.misses > 0) == (hits, not hits)
        np.testing.assert_array_equal(mine.cross_votes(sets, sets), votes)
        assert mine.judge_pairs(sets) == judge.judge_pairs(sets)


def test_votes_that_scores_do_not_give_are_not_kept_as_scores(path: Path) -> None:
    class Contrary(Lengths):
        def cross_votes(self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[np.ndarray]:
            return [1 - block for block in super().cross_votes(on, off)]

    class Loud(Lengths):
        grades = True

        def cross_votes(self, on: Sequence[CandidateSet], off: Sequence[CandidateSet]) -> list[np.ndarray]:
            print("voting")
            return super().cross_votes(on, off)

    with pytest.raises(ValueError, match="verdicts of Contrary cannot be kept"):
        cached(Contrary(), path)
    assert cached(Loud(), path).score([make_set("p", "a")]) == [[1 / 3]]


@pytest.mark.parametrize("judge", [Lengths(), Longer()])
def test_a_copy_is_of_the_same_kind(path: Path, judge: Judge) -> None:
    original = cached(judge, path)
    for twin in (copy.copy(original), copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert type(twin) is type(original) and twin.score([make_set("p", "a", "bb")]) == judge.score(
            [make_set("p", "a", "bb")]
        )


def test_a_verdict_is_kept_for_its_judge_prompt_and_answer_alone(path: Path) -> None:
    cached(Lengths(), path).score([make_set("p", "a")])
    others = [
        (Lengths("lengths 2"), make_set("p", "a")),
        (Lengths(), make_set("p2", "a")),
        (Lengths(), make_set("p", "a", role="system")),
        (Lengths(), make_set("p", "a ")),
        (Lengths(), CandidateSet((Message("user", "p"), Message("user", "a")), (Candidate(""),))),
    ]
    for judge, candidate_set in others:
        cached(judge, path).score([candidate_set])
        assert len(judge.asked) == 1, candidate_set
    longer = Longer()
    cached(longer, path).stored.compare([Comparison((Message("user", "p"),), "a", "")])
    assert len(longer.asked) == 1


def test_abstentions_are_asked_for_again(path: Path) -> None:
    for _ in range(2):
        judge = Lengths()
        (scores,) = cached(judge, path).score([make_set("p", "why?", "x", "oo")])
        assert math.isnan(scores[0]) and scores[1:] == [1 / 3, math.inf]
    assert judge.asked == [["why?", "oo"]], "nor is what is no finite number kept"


def test_half_characters_and_empty_texts_are_keys_as_any_other(path: Path) -> None:
    sets = [make_set("p\ud800", "\udfff", "", "\0")]
    assert cached(Lengths(), path).score(sets) == cached(Lengths(), path).score(sets) == [[1 / 3, 0, 1 / 3]]


def test_an_empty_call_asks_nothing(path: Path) -> None:
    judge = Lengths()
    assert cached(judge, path).score([]) == [] and cached(judge, path).score([make_set("p")]) == [[]]
    assert cached(judge, path).cross_votes([], []) == [] and judge.asked == []


def test_what_was_paid_before_a_failure_is_kept(path: Path) -> None:
    class Failing(Longer):
        def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
            if len(self.asked) == 2:
                raise RuntimeError("the server is gone")
            return super().compare(comparisons)

    sets = [make_set("p", "a", "bb", "ccc")]
    failing = cached(Failing(), path, commit_every=2)
    with pytest.raises(RuntimeError, match="server is gone") as caught:
        failing.score(sets)
    assert caught.value.__notes__ == ["raised by Failing on the prompt 'p'"] and failing.misses == 4
    judge = Longer()
    cached(judge, path, commit_every=4).score(sets)
    assert [len(comparisons) for comparisons in judge.asked] == [2], "four of the six were paid before"


def test_a_judge_that_answers_wrongly_is_named_and_nothing_is_kept(path: Path) -> None:
    class Wrong(Longer):
        answers: ClassVar = [1.5, 0.5]

        def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
            return self.answers

    for _ in range(2):
        with pytest.raises(ValueError, match="longer answered 1.5, expected P"):
            cached(Wrong(), path).score([make_set("p", "a", "bb")])
    Wrong.answers = [0.5]
    with pytest.raises(ValueError, match="asked for 2 comparisons and answered 1"):
        cached(Wrong(), path).score([make_set("p", "a", "bb")])


@pytest.mark.parametrize(
    "judge", [RuleJudge(lambda prompt, candidates, row: [0.0] * len(candidates)), RecordedScores(), "wrapped"]
)
def test_judges_that_see_more_than_prompt_and_answer_are_refused(path: Path, judge: Any) -> None:
    with pytest.raises(ValueError, match="cannot be kept: they depend on more than its identity"):
        cached(cached(Lengths(), path) if judge == "wrapped" else judge, path)


def test_the_default_file_is_in_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIT_ALIGN_CACHE", str(tmp_path / "here"))
    CachedJudge(Lengths()).score([make_set("p", "a")])
    assert (tmp_path / "here" / "verdicts.sqlite").exists()
    with pytest.raises(ValueError, match="commit_every"):
        CachedJudge(Lengths(), commit_every=0)


def test_copies_and_pickles_work(path: Path) -> None:
    judge = cached(Lengths(), path)
    judge.score([make_set("p", "a")])
    for other in (copy.deepcopy(judge), pickle.loads(pickle.dumps(judge))):
        assert other.score([make_set("p", "a")]) == [[1 / 3]]
        assert (other.hits, other.misses, judge.hits) == (1, 1, 0)


def test_hits_and_misses_are_reported_with_what_the_judge_tells(path: Path) -> None:
    class Paid(Lengths):
        def report(self) -> str:
            return f"{len(self.asked)} calls"

    judge, plain = cached(Paid(), path), cached(Lengths("other"), path)
    assert (judge.report(), plain.report()) == ("0 calls", None)
    judge.score([make_set("p", "a", "bb")])
    judge.score([make_set("p", "a", "ccc")])
    plain.score([make_set("p", "a")])
    assert judge.report() == f"verdict cache: 1 of 4 verdicts of Paid were known; {path}\n2 calls"
    combined = CombinedJudge([JudgePart(judge), JudgePart(plain)])
    assert combined.report() == f"{judge.report()}\nverdict cache: 0 of 1 verdicts of Lengths were known; {path}"


@pytest.mark.parametrize("error", [ConnectionError, KeyboardInterrupt])
def test_what_a_judge_said_before_it_failed_is_kept(path: Path, error: type[BaseException]) -> None:
    class OneByOne(Longer):
        """Answers the last comparison first, and fails at the fourth that it is asked in its life."""

        remaining = 3

        def compare_each(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, float]]:
            for place in reversed(range(len(comparisons))):
                if not self.remaining:
                    raise error("no more")
                self.remaining -= 1
                yield place, self.compare([comparisons[place]])[0]

    sets, failing, second = [make_set("p", "a", "bbb", "cc")], OneByOne(), Longer()
    judge = cached(failing, path)
    with pytest.raises(error, match="no more"):
        judge.score(sets)
    assert (judge.hits, judge.misses) == (0, 3)
    assert cached(second, path).score(sets) == Longer().score(sets)
    assert len(failing.asked) == 3 and len(second.asked[0]) == 3, "three of six were paid for"
    assert not {pair for (pair,) in failing.asked} & set(second.asked[0])


def test_of_answers_that_miss_one_none_is_kept(path: Path) -> None:
    """Which comparison each belongs to cannot be told."""

    class Short(Longer):
        def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
            return super().compare(comparisons)[1:]

    class Wild(Longer):
        def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
            return [*super().compare(comparisons)[1:], 1.5]

    class Twice(Longer):
        def compare_each(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, float]]:
            yield from [(0, 0.1), (0, 0.2)]

    for judge, message in ((Short(), "asked for 6 .* answered 5"), (Wild(), "answered 1.5"), (Twice(), "twice")):
        with pytest.raises(ValueError, match=message):
            cached(judge, path).score([make_set("p", "a", "bbb", "cc")])
    second = Longer()
    cached(second, path).score([make_set("p", "a", "bbb", "cc")])
    assert len(second.asked[0]) == 6 - 1, "the first of those that come one by one is known"


def test_memory_is_given_back_through_the_cache(path: Path) -> None:
    released = []

    class Heavy(Lengths):
        def release(self) -> None:
            released.append(True)

    cached(Heavy(), path).release()
    assert released == [True]


# -- several processes, and the ends that they meet


def keys(tag: str, count: int, start: int = 0) -> list[bytes]:
    return [f"{tag}{n:08d}".encode() for n in range(start, start + count)]


def in_processes(target: Callable[..., None], arguments: list[tuple[Any, ...]]) -> None:
    processes = [FORK.Process(target=target, args=process_arguments) for process_arguments in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def write_many(path: Path, tag: str, ready: Any) -> None:
    warnings.simplefilter("error")
    ready.wait(30)
    store = VerdictStore(path)
    for start in range(0, 200, 10):
        store.write(dict.fromkeys(keys(tag, 10, start), float(start)))
        store.write(dict.fromkeys(keys("shared", 10, start), 7.0))
        assert store.read(keys(tag, 10, start)) == dict.fromkeys(keys(tag, 10, start), float(start))


def test_several_processes_write_at_once(path: Path) -> None:
    ready = FORK.Barrier(4)  # all begin at once, with the file still to be made
    in_processes(write_many, [(path, tag, ready) for tag in "abcd"])
    store = VerdictStore(path)
    for tag in "abcd":
        assert store.read(keys(tag, 200)) == {key: float(int(key[1:]) // 10 * 10) for key in keys(tag, 200)}
    assert store.read(keys("shared", 200)) == dict.fromkeys(keys("shared", 200), 7.0)
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no side files are left"


def set_aside_and_write(path: Path, tag: str, ready: Any) -> None:
    warnings.simplefilter("ignore")
    ready.wait(30)
    VerdictStore(path).write(dict.fromkeys(keys(tag, 5), 1.0))


def test_a_damaged_file_met_by_several_processes_is_set_aside_once(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database" * 100)
    ready = FORK.Barrier(4)
    in_processes(set_aside_and_write, [(path, tag, ready) for tag in "abcd"])
    assert len(VerdictStore(path).read([key for tag in "abcd" for key in keys(tag, 5)])) == 20
    (aside,) = path.parent.glob("*.aside-*")
    assert aside.read_bytes() == b"not a database" * 100


def test_a_file_that_another_process_has_replaced_already_stays(path: Path) -> None:
    store = VerdictStore(path)
    store.write({b"a": 1.0})
    store._set_aside(path.stat().st_ino + 1, sqlite3.DatabaseError("seen before it was replaced"))
    assert store.read([b"a"]) == {b"a": 1.0}


def write_forever(path: Path, pipe: Any) -> None:
    store = VerdictStore(path)
    for start in range(0, 10**9, 20):
        store.write(dict.fromkeys(keys("k", 20, start), 1.0))
        pipe.send(start + 20)


def test_kill_9_loses_and_damages_nothing(path: Path) -> None:
    committed = 0
    for _ in range(3):
        receive, send = FORK.Pipe(duplex=False)
        process = FORK.Process(target=write_forever, args=(path, send))
        process.start()
        send.close()
        for _ in range(25):
            committed = max(committed, receive.recv())
        os.kill(process.pid or 0, signal.SIGKILL)  # somewhere in the middle of a write
        process.join(30)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            stored = VerdictStore(path).read(keys("k", committed + 2000))
        assert len(stored) >= committed and len(stored) % 20 == 0, "all that was committed, and no half of a write"
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def write_on_a_full_disk(path: Path, pipe: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))  # no file grows beyond this: as a full disk
    judge, store = cached(Lengths(), path, commit_every=50), VerdictStore(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        texts = [str(n) * 3 for n in range(10_000)]
        for start in range(0, len(texts), 1000):
            (scores,) = judge.score([make_set("p", *texts[start : start + 1000])])
            assert scores == [len(text) / 3 for text in texts[start : start + 1000]]
    messages = [str(warning.message) for warning in caught if "verdict cache" in str(warning.message)]
    kept = len(store.read(keys("x", 1)))
    pipe.send((messages, kept, judge.misses))


def test_a_full_disk_warns_once_and_judging_goes_on(path: Path) -> None:
    receive, send = FORK.Pipe(duplex=False)
    in_processes(write_on_a_full_disk, [(path, send)])
    messages, _, misses = receive.recv()
    (line,) = messages
    assert "cannot be used" in line and "judging goes on without it" in line and misses == 10_000
    judge = Lengths()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached(judge, path).score([make_set("p", *(str(n) * 3 for n in range(50)))])
    assert judge.asked == [], "what was written before the disk was full is there"


@pytest.mark.parametrize("kind", ["a file as folder", "a folder as file", "no permission"])
def test_a_place_that_cannot_be_written_warns_once(path: Path, kind: str) -> None:
    if kind == "a file as folder":
        path.parent.write_text("in the way")
    elif kind == "a folder as file":
        path.mkdir(parents=True)
    else:
        path = Path("/proc/verdicts/verdicts.sqlite")
    judge = cached(Lengths(), path)
    with pytest.warns(UserWarning, match="cannot be used.*judging goes on without it") as caught:
        for _ in range(3):
            assert judge.score([make_set("p", "a", "bb")]) == [[1 / 3, 2 / 3]]
    assert len(caught) == 1 and len(judge.judge.asked) == 3


# -- files that are no verdict cache


def other_database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE runs (name TEXT)")


def other_format(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA application_id = 77")


def torn(path: Path) -> None:
    VerdictStore(path).write(dict.fromkeys(keys("k", 5000), 1.0))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwritten_inside(path: Path) -> None:
    VerdictStore(path).write(dict.fromkeys(keys("k", 5000), 1.0))
    content = bytearray(path.read_bytes())
    content[20480:20488] = b"\xff" * 8  # the head of one page, which a look-up elsewhere never reads
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make_bad", "says"),
    [
        (lambda path: path.write_bytes(b"garbage" * 999), "is damaged"),
        (torn, "is damaged"),
        (overwritten_inside, "is damaged"),
        (other_database, "is no verdict cache .it holds runs"),
        (other_format, "is no verdict cache .it holds another format"),
    ],
)
def test_a_damaged_or_foreign_file_is_set_aside(path: Path, make_bad: Callable[[Path], None], says: str) -> None:
    path.parent.mkdir()
    make_bad(path)
    before, judge = path.read_bytes(), Lengths()
    with pytest.warns(UserWarning, match=says) as caught:
        assert cached(judge, path).score([make_set("p", "a")]) == [[1 / 3]]
    assert len(caught) == 1
    (aside,) = path.parent.glob("*.aside-*")
    assert aside.read_bytes() == before and str(aside) in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached(judge, path).score([make_set("p", "a")])
    assert len(judge.asked) == 1, "the new file works"


def test_an_empty_file_is_a_new_cache(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            judge = Lengths()
            cached(judge, path).score([make_set("p", "a")])
    assert judge.asked == []


def test_a_place_without_write_ahead_log_works_with_the_journal(path: Path) -> None:
    path.parent.mkdir()
    VerdictStore(path).write({b"a": 1.0})
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    VerdictStore(path).write({b"b": 2.0})
    assert VerdictStore(path).read([b"a", b"b", b"c"]) == {b"a": 1.0, b"b": 2.0}


def test_numbers_come_back_to_the_bit_and_the_first_verdict_stays(path: Path) -> None:
    values = {b"a": 0.1 + 0.2, b"b": -1e300, b"c": 5e-324}
    VerdictStore(path).write(values)
    VerdictStore(path).write({b"a": 9.0})
    assert VerdictStore(path).read(values) == values
