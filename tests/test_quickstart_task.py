"""The quickstart's task: what its rule rewards, and that its data are what their README says."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from configs.quickstart.make_data import INSTRUCTIONS, MODEL, REQUESTS, edit
from configs.quickstart.rule import CONSTRAINTS, meets, names, rule, sense, vocabulary, words
from lit_align.data import load_sets
from lit_align.judges import RuleJudge

FOLDER = Path(__file__).parents[1] / "configs" / "quickstart"
Row = dict[str, Any]


def rows(name: str) -> list[Row]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def train() -> list[Row]:
    return rows("train")


@pytest.fixture(scope="module")
def held_out() -> list[Row]:
    return rows("held_out")


@pytest.mark.parametrize(
    ("constraint", "text", "met"),
    [
        ("lower_case", "tea is a warm drink.", True),
        ("lower_case", "Tea is a warm drink.", False),
        ("lower_case", "tea is NASA's drink.", False),
        ("lower_case", "...", False),
        ("begins_with_well", "Well, tea is a warm drink.", True),
        ("begins_with_well", '"Well, tea is a warm drink."', True),
        ("begins_with_well", "Wellness comes with tea.", False),
        ("begins_with_well", "Tea does you well.", False),
        ("question", "Is tea a warm drink?", True),
        ("question", "Tea? It is a warm drink.", False),
        ("question", '"Is tea a warm drink?"', True),
    ],
)
def test_meets(constraint: str, text: str, met: bool) -> None:
    assert meets(text, constraint) is met


def test_an_unknown_constraint_is_an_error() -> None:
    with pytest.raises(ValueError, match="lower_case, begins_with_well, question; got 'shout'"):
        meets("HELLO", "shout")


def test_names_knows_singular_and_plural_and_no_joined_words() -> None:
    assert names("A bee makes honey.", "bees") and names("Bees' homes are hives.", "bees")
    assert names("The night has a moon.", "the moon") and names("Boxes hold things.", "boxes")
    assert not names("The night is dark.", "the moon")
    assert not names("beehomesweet", "bees")


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("tea is a very good drink at night.", 1.5),  # sense 1: all parts
        ("Tea is a very good drink at night.", 0.5),  # constraint missed
        ("it is a very good drink at night.", 1.2),  # topic missed
        ("tea is a very good drink at night", 1.3),  # no end
        ("tea is good.", 1.5 * 3 / 8),  # three words of eight
        ("tea tea tea tea tea tea tea tea tea tea.", 1.5 * (1 / 10) / 0.8),  # one distinct word in ten
        ("tea is a very good zzyzxq drink at night.", 1.5 * (1 - 2 / 9)),  # one word in nine made up
        ("teahomesweet", 0.0),
        ("", 0.0),
    ],
)
def test_rule_adds_its_parts_and_weighs_them_by_sense(text: str, score: float) -> None:
    row = {"constraint": "lower_case", "topic": "tea"}
    assert rule("Write about tea in lower case.", [text], row) == [pytest.approx(score)]


def test_the_rule_prefers_a_plain_answer_to_nonsense_that_meets_the_constraint() -> None:
    row = {"constraint": "begins_with_well", "topic": "bees"}
    plain, *nonsense = rule(
        'Give one short fact about bees. Begin with the word "Well".',
        [
            "Bees make honey and live together in their hives.",
            "Well",
            "Well well well well.",
            "Well beehomesweet",
            "Well, bzzt grmpf zork.",
        ],
        row,
    )
    assert all(score < plain for score in nonsense)


def test_words_and_sense() -> None:
    assert words("Don\u2019t eat 2 Caf\u00e9-cakes!") == ["don't", "eat", "caf\u00e9", "cakes"]
    assert sense("Owls fly at night.", {"owl", "fly", "at", "night"}) == pytest.approx(4 / 8)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_edits_meet_their_constraint(constraint: str) -> None:
    for text in ("Tea is a drink.", "I like tea!", "NASA drinks tea.", "Tea"):
        assert meets(edit(text, constraint, random.Random(0)), constraint)


def test_the_prompts_are_the_ones_the_tool_writes(train: list[Row], held_out: list[Row]) -> None:
    for row in train + held_out:
        requests = [request.format(row["topic"]) for request in REQUESTS]
        possible = {" ".join(parts) for parts in product(requests, INSTRUCTIONS[row["constraint"]])}
        assert row["prompt"] in possible


def test_held_out_prompts_and_topics_are_not_trained_on(train: list[Row], held_out: list[Row]) -> None:
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    assert not {row["topic"] for row in train} & {row["topic"] for row in held_out}
    assert len({row["prompt"] for row in train}) == len(train) and len(train) >= 450
    assert len({row["topic"] for row in held_out}) == len(held_out) and 64 <= len(held_out) <= 128


def test_constraints_are_balanced(train: list[Row], held_out: list[Row]) -> None:
    for part in (train, held_out):
        counts = Counter(row["constraint"] for row in part)
        assert set(counts) == set(CONSTRAINTS)
        assert max(counts.values()) < 1.25 * min(counts.values())


def test_candidates_are_of_mixed_origin_and_quality(train: list[Row], held_out: list[Row]) -> None:
    for part in (train, held_out):
        met: dict[str, list[bool]] = {MODEL: [], f"{MODEL} + edit": []}
        for row in part:
            assert Counter(c["model"] for c in row["candidates"]) == {MODEL: 2, f"{MODEL} + edit": 2}
            assert len({c["text"] for c in row["candidates"]}) == 4
            for candidate in row["candidates"]:
                met[candidate["model"]].append(meets(candidate["text"], row["constraint"]))
        assert sum(met[MODEL]) / len(met[MODEL]) < 0.15
        assert all(met[f"{MODEL} + edit"])


def test_every_prompt_has_a_better_and_a_worse_candidate(train: list[Row], held_out: list[Row]) -> None:
    scored = [rule(row["prompt"], [c["text"] for c in row["candidates"]], row) for row in train + held_out]
    assert all(0 <= score <= 1.5 for scores in scored for score in scores)
    assert sum(max(scores) - min(scores) > 0.5 for scores in scored) > 0.9 * len(scored)


def test_the_framework_reads_and_judges_the_files() -> None:
    sets = load_sets(str(FOLDER / "held_out.jsonl"))
    judged = RuleJudge("configs.quickstart.rule.rule").score(sets)
    assert [len(scores) for scores in judged] == [4] * len(sets)
    assert judged[0] == rule(sets[0].row["prompt"], [c.text for c in sets[0].candidates], dict(sets[0].row))


def test_the_files_are_small_and_tidy(train: list[Row]) -> None:
    assert sum(path.stat().st_size for path in FOLDER.glob("*.jsonl")) < 1_000_000
    listed = (FOLDER / "words.txt").read_text(encoding="utf-8").splitlines()
    assert listed == sorted(set(listed)) and set(listed) == vocabulary()
    assert all(set(words(row["prompt"])) <= vocabulary() for row in train)
