"""What a row brings beside plain turns: tools, tool calls, reasoning, parts, a system column, template settings."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from typing import Any

import pytest

from lit_align.data.held_out import prompt_key
from lit_align.records import (
    Chat,
    Message,
    PreferencePair,
    answer_turn,
    prompt_identity,
    prompt_text,
    prompt_turns,
    template_arguments,
)
from lit_align.report.text import _rows
from lit_align.rows.parse import parse_row
from lit_align.rows.reading import BadRow

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"z": 1, "a": 2}}}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Rome"}}}
USER_TURN = {"role": "user", "content": "Is it warm?"}
USER = Message("user", "Is it warm?")


def pair(counts: Counter[str] | None = None, **row: Any) -> PreferencePair:
    parsed = parse_row({"prompt": "Is it warm?", "chosen": "Yes.", "rejected": "No.", **row}, "r", counts=counts)
    assert isinstance(parsed, PreferencePair)
    return parsed


def test_a_plain_prompt_is_the_tuple_it_was_and_keeps_its_key() -> None:
    assert pair().prompt == (USER,) and type(pair().prompt) is tuple
    assert prompt_identity((USER,)) == "Is it warm?" and prompt_key((USER,)) == "83b1af75629b49f1"
    assert repr((USER,)) == "(Message(role='user', content='Is it warm?'),)", "fingerprints and seeds are made of it"
    assert "turn='x'" in repr(Message("user", "Is it warm?", "x"))


@pytest.mark.parametrize("as_text", [False, True])
def test_tools_and_template_settings_belong_to_the_prompt(as_text: bool) -> None:
    kwargs = {"enable_thinking": False}
    row: dict[str, Any] = {"tools": TOOLS, "chat_template_kwargs": kwargs}
    columns: dict[str, Any] = {key: json.dumps(value) if as_text else value for key, value in row.items()}
    prompt = pair(**columns).prompt
    assert template_arguments(prompt) == {"tools": TOOLS, **kwargs} and prompt_turns(prompt) == prompt_turns((USER,))
    assert '"z": 1, "a": 2' in prompt_text(prompt), "keys keep the order in which a template writes them"
    others = [pair().prompt, pair(tools=TOOLS).prompt, pair(chat_template_kwargs=kwargs).prompt]
    assert len({prompt, *others, pickle.loads(pickle.dumps(prompt))}) == 4 and prompt not in others
    assert len({prompt_key(p) for p in (prompt, *others)}) == 4
    assert isinstance(prompt, Chat) and "enable_thinking" in repr(prompt)


def test_empty_tools_and_settings_are_none() -> None:
    assert pair(tools=[], chat_template_kwargs="", system=None).prompt == (USER,)


@pytest.mark.parametrize(
    ("row", "reason", "why"),
    [
        ({"tools": "weather"}, "wrong_type", "`tools` as a list or as JSON of one"),
        ({"chat_template_kwargs": [1]}, "wrong_type", "`chat_template_kwargs` as an object"),
        ({"system": 3}, "wrong_type", "`system` as text"),
        ({"prompt": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}, "wrong_type", "parts of `prompt"),
        ({"prompt": [{"role": "user", "content": 3}]}, "wrong_type", "as text or as a list of text parts"),
        (
            {"system": "Be brief.", "prompt": [{"role": "system", "content": "Be long."}, USER_TURN]},
            "systems_differ",
            "one system turn, got `system` 'Be brief.' and the chat's own 'Be long.'",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_a_bad_row(row: dict[str, Any], reason: str, why: str) -> None:
    with pytest.raises(BadRow) as caught:
        pair(**row)
    assert caught.value.reason == reason and why in caught.value.why


def test_a_system_column_is_the_system_turn() -> None:
    system = Message("system", "Be brief.")
    assert pair(system="Be brief.").prompt == (system, USER)
    own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it warm?"}]
    assert pair(system="Be brief.", prompt=own).prompt == (system, USER)
    whole: dict[str, Any] = {key: [*own[1:], {"role": "assistant", "content": key}] for key in ("chosen", "rejected")}
    assert pair(system="Be brief.", prompt=None, **whole).prompt == (system, USER)


def test_turns_keep_what_a_template_writes_of_them() -> None:
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "Is it "}, {"type": "text", "text": "warm?"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "Ask."},
        {"role": "tool", "content": "31", "name": "weather", "tool_call_id": "1", "tool_calls": None},
    ]
    answer = {"role": "assistant", "content": "Yes.", "reasoning_content": "It is 31."}
    made = pair(prompt=turns, chosen=[answer])
    assert prompt_turns(made.prompt) == [
        turns[0],
        {"role": "assistant", "content": "", "reasoning_content": "Ask.", "tool_calls": [CALL]},
        {"role": "tool", "content": "31", "name": "weather", "tool_call_id": "1"},
    ]
    assert answer_turn(made.chosen) == answer and made.chosen.text == "Yes."
    assert answer_turn(made.rejected) == {"role": "assistant", "content": "No."}
    assert prompt_text(made.prompt).splitlines()[0] == "user: Is it warm?"
    assert json.dumps(CALL) in prompt_text(made.prompt), "judges read the call"
    without = [{key: value for key, value in turn.items() if key != "reasoning_content"} for turn in turns]
    assert prompt_key(pair(prompt=without).prompt) != prompt_key(made.prompt)


def test_answers_that_differ_in_their_reasoning_alone_are_two() -> None:
    answers = [[{"role": "assistant", "content": "Yes.", "reasoning_content": why}] for why in ("It is.", "Is it?")]
    made = pair(chosen=answers[0], rejected=answers[1])
    assert made.chosen.text == made.rejected.text and made.chosen != made.rejected
    called = pair(chosen=[{"role": "assistant", "content": None, "tool_calls": [CALL]}])
    assert called.chosen.text == json.dumps(CALL)
    with pytest.raises(BadRow, match="two different completions"):
        pair(chosen=answers[0], rejected=answers[0])


def test_columns_and_keys_that_nothing_reads_are_counted_and_named() -> None:
    counts: Counter[str] = Counter(pairs=2)
    turns = [{"role": "user", "content": "Is it warm?", "mood": "calm"}]
    pair(counts, prompt=turns, source="web", score_chosen=1.0, empty=None, id=7)
    pair(counts, source="book", prompt_id="a1")
    assert counts == {"unused_column/source": 2, "unused_key/mood": 1, "pairs": 2}
    text = " ".join(_rows({**counts, "val/unused_column/source": 1}).split())
    assert text.endswith("changed: nothing. Not read, unless by a judge's rule: column `source`, key `mood`.")
    assert "changed: 3 prompt too long. Not read," in " ".join(_rows({**counts, "prompt_too_long": 3}).split())
