"""Prompts that say the same: one normal form, and groups of nearly equal ones."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest

from lit_align.metrics.words import words
from lit_align.records import Candidate, CandidateSet, Message, PreferencePair, Prompt
from lit_align.rows.alike import _cosine, _tf_idf, draw_unlike, group_alike, normal_form
from lit_align.rows.loading import split_by_prompt, without_prompts
from tests.helpers.data_fakes import data_module, pair_rows, write

SAME = [
    "Caf\u00e9 or tea, \ufb01rst?",
    "  caf\u00e9 OR\ttea,\nfirst? ",
    "Cafe\u0301 or\u00a0tea, first?",
    "\uff23afe\u0301 or tea\uff0c first\uff1f",
    "Caf\u00e9\u200b or tea,\u200d first?\ufeff",
]
OTHERS = ["Cafe or tea, first?", "Cafeor tea, first?", "Caf\u00e9 or tea first", ""]


def user(text: str) -> Prompt:
    return (Message("user", text),)


def pair(text: str) -> PreferencePair:
    return PreferencePair(user(text), Candidate("a"), Candidate("b"))


def test_blanks_case_and_unicode_form_make_no_other_prompt() -> None:
    assert {normal_form(user(text)) for text in SAME} == {"caf\u00e9 or tea, first?"}
    assert len({normal_form(user(text)) for text in [SAME[0], *OTHERS]}) == 5
    assert normal_form((Message("system", "hi"), Message("user", "x"))) != normal_form(user("x"))
    assert len({normal_form(user(text)) for text in ("1 11 2", "11 1 2", "1112")}) == 3  # blanks between words stay


def test_the_split_keeps_prompts_of_one_form_together() -> None:
    texts = [variant.replace("first", f"number {n}") for n in range(20) for variant in SAME[1:3]]
    for seed in range(5):
        train, held_out = split_by_prompt([pair(text) for text in texts], 0.3, seed)
        forms = [{normal_form(record.prompt) for record in part} for part in (train, held_out)]
        assert not forms[0] & forms[1] and len(held_out) == 2 * len(forms[1])
        assert split_by_prompt([pair(text) for text in reversed(texts)], 0.3, seed)[1] == held_out[::-1]


def test_training_rows_of_a_held_out_prompt_are_dropped_whatever_their_form(tmp_path: Path) -> None:
    assert without_prompts([pair(text) for text in [*SAME, "x"]], [pair(SAME[2])]) == [pair("x")]
    rows = pair_rows(8)
    val = [{**rows[0], "prompt": f" {rows[0]['prompt'].upper()}\u200b"}, {**rows[1], "prompt": "held out"}]
    files = write(tmp_path / "train.jsonl", rows), write(tmp_path / "val.jsonl", val)
    data = data_module(files[0], val=files[1])
    assert data.counts["prompt_held_out"] == 1 and len(data.train_sets) == 7


def test_groups_hold_what_is_nearly_equal_and_not_what_a_template_makes() -> None:
    topics = ["lamps", "tea", "rain", "snow", "cats", "ships", "bread", "maps", "clocks", "rivers", "moss", "chess"]
    template = [user(f"Write one short sentence about {topic}. Use lower case only.") for topic in topics]
    alike = [user(f"How would {who} explain the tides of the northern sea to a child?") for who in ("you", "we", "i")]
    groups = group_alike(template + alike)
    assert len({groups[prompt] for prompt in template}) == 12
    assert len({groups[prompt] for prompt in alike}) == 1
    assert group_alike((template + alike)[::-1]) == groups
    same = group_alike([user(text) for text in SAME])
    assert set(same.values()) == {"caf\u00e9 or tea, first?"}
    assert group_alike([user(""), user("?"), user("\u200b")]) == {user(""): "", user("?"): "?", user("\u200b"): ""}
    assert group_alike([]) == {}


@pytest.mark.parametrize("threshold", [0.5, 0.75, 0.95])
def test_comparing_by_rare_words_misses_no_leader(threshold: float) -> None:
    """Held against all comparisons of each prompt with each leader."""
    rng = random.Random(0)
    prompts = [user(" ".join(rng.choices("abcdefghijklmnop", k=rng.randint(1, 6)))) for _ in range(150)]
    bags = {form: frozenset(words(form)) for form in sorted({normal_form(prompt) for prompt in prompts})}
    spread = Counter(word for bag in bags.values() for word in bag)
    vectors = {form: _tf_idf(bag, spread, len(bags)) for form, bag in bags.items()}
    leaders: list[str] = []
    for form, vector in vectors.items():
        near = [one for one in leaders if _cosine(vector, vectors[one]) >= threshold]
        leaders += [] if near else [form]
    groups = group_alike(prompts, threshold)
    assert set(groups.values()) == set(leaders) and 1 < len(leaders) < len(vectors)


def test_ten_thousand_prompts_take_seconds() -> None:
    rng = random.Random(0)
    vocabulary = [f"w{n}" for n in range(5000)]
    prompts = [user(" ".join(rng.choices(vocabulary, [1 / (n + 1) for n in range(5000)], k=30))) for _ in range(2000)]
    started = time.process_time()
    group_alike(prompts)
    assert time.process_time() - started < 5  # a fifth of the size


def test_a_draw_takes_one_of_each_group() -> None:
    sets = [CandidateSet(user(f"{n}"), ()) for n in range(40)]
    group = lambda prompt: str(int(prompt[0].content) // 8)  # noqa: E731
    drawn = [draw_unlike(sets, group, 10, random.Random(seed)) for seed in range(30)]
    assert all(sorted(group(one.prompt) for one in sets) == list("01234") for sets in drawn)
    assert len({one.prompt for some in drawn for one in some}) > 30  # another one of the group each time
    assert len(draw_unlike(sets, group, 3, random.Random(0))) == 3
    alone = draw_unlike(sets, lambda prompt: prompt[0].content, 40, random.Random(1))
    assert alone == random.Random(1).sample(sets, 40)
