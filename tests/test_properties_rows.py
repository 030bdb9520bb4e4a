"""What holds of rows of any content: they are read or refused by name, never misread."""

from __future__ import annotations

import csv
import gzip
import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_align.records import Candidate, Message, PreferencePair
from lit_align.rows.alike import normal_form
from lit_align.rows.loading import load_sets, merge_sets, split_by_prompt
from lit_align.rows.parse import COLUMNS, parse_row
from lit_align.rows.reading import BadRow, read_rows
from tests.helpers.properties import CHATS, SCORES, TEXTS, VALUES, examples

ODD_CELLS = st.dictionaries(st.sampled_from(COLUMNS) | st.integers(), VALUES, max_size=4)
GOOD_ROWS = st.sampled_from(
    [
        {},
        {"prompt": "Hi.", "chosen": "Hello.", "rejected": "No.", "chosen_score": 1, "rejected_score": 0.5},
        {"chosen": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "a"}], "rejected": []},
        {"prompt": [{"role": "user", "content": "Hi."}], "candidates": ["a", {"text": "b", "score": 2}]},
    ]
)
ODD_ROWS = st.tuples(GOOD_ROWS, ODD_CELLS).map(lambda both: both[0] | both[1])
TWO_TEXTS = st.lists(TEXTS, min_size=2, max_size=2, unique=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@examples(300)
@given(row=ODD_ROWS, prompts_alone=st.booleans())
def test_any_row_is_a_record_or_is_refused_with_its_place(row: dict[Any, Any], prompts_alone: bool) -> None:
    try:
        record = parse_row(row, "x.jsonl, row 7", prompts_alone)
    except BadRow as error:
        refusal = str(error)
        record = None
    if record is None:
        assert refusal.startswith("x.jsonl, row 7: ") and "\n" not in refusal and len(refusal) < 600
        return
    pair = isinstance(record, PreferencePair)
    answers = [record.chosen, record.rejected] if pair else list(record.candidates)
    for text in [*(turn.content for turn in record.prompt), *(answer.text for answer in answers)]:
        text.encode()
    assert record.prompt[-1].role in ("user", "tool") and all(answer.text.strip() for answer in answers)
    assert all(answer.score is None or abs(answer.score) < float("inf") for answer in answers)
    assert not pair or record.margin is None or abs(record.margin) < float("inf")
    assert parse_row(row, "x.jsonl, row 7", prompts_alone) == record


@examples(50)
@given(prompt=CHATS, answers=TWO_TEXTS, scores=st.tuples(SCORES, SCORES))
def test_each_form_of_a_pair_gives_the_same_pair(prompt: Any, answers: list[str], scores: Any) -> None:
    chosen, rejected = answers
    scored = {"chosen_score": scores[0], "rejected_score": scores[1]}
    forms = [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected},
        {"prompt": prompt, "chosen": assistant(chosen), "rejected": assistant(rejected)},
        {"prompt": prompt, "chosen": [*prompt, *assistant(chosen)], "rejected": [*prompt, *assistant(rejected)]},
        {"chosen": [*prompt, *assistant(chosen)], "rejected": [*prompt, *assistant(rejected)]},
    ]
    if len(prompt) == 1:
        forms.append({"prompt": prompt[0]["content"], "chosen": chosen, "rejected": rejected})
    if prompt[0]["role"] == "system":
        forms.append({"prompt": prompt[1:], "system": prompt[0]["content"], "chosen": chosen, "rejected": rejected})
    for form in forms:
        pair = parse_row({**form, **scored})
        assert isinstance(pair, PreferencePair)
        assert pair.prompt == tuple(Message(turn["role"], turn["content"]) for turn in prompt)
        assert pair.chosen == Candidate(chosen, float(scores[0])) and pair.rejected.text == rejected
        assert pair.margin == float(scores[0]) - float(scores[1])


ROWS = st.lists(
    st.fixed_dictionaries({"prompt": TEXTS, "chosen": TEXTS, "rejected": TEXTS, "chosen_score": SCORES}), min_size=1
)


@examples(30)
@given(rows=ROWS, gap=st.sampled_from(["", "\n", " \n\r\n"]), ascii_only=st.booleans())
def test_every_kind_of_file_gives_back_its_rows(folder: Path, rows: list[Any], gap: str, ascii_only: bool) -> None:
    lines = [json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows]
    (folder / "a.jsonl").write_bytes(gap.join(lines).encode())
    (folder / "b.json").write_bytes(json.dumps(rows, ensure_ascii=ascii_only).encode())
    with gzip.open(folder / "c.jsonl.gz", "wb") as packed:
        packed.write(b"\xef\xbb\xbf" + gap.join(lines).encode())
    for name in ("a.jsonl", "b.json", "c.jsonl.gz"):
        assert [row for row, _ in read_rows(str(folder / name))] == rows


@examples(40)
@given(rows=ROWS)
def test_csv_gives_back_texts_and_scores(folder: Path, rows: list[Any]) -> None:
    with (folder / "d.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert [row for row, _ in read_rows(str(folder / "d.csv"))] == rows


HEADS = st.sampled_from([b"", b"prompt,chosen,rejected\n", b'[{"prompt": ', b"\xef\xbb\xbf", b"\x1f\x8b"])
ENDINGS = st.sampled_from([".jsonl", ".json", ".csv", ".jsonl.gz"])


@examples(100)
@given(head=HEADS, content=st.binary(max_size=40), ending=ENDINGS)
def test_any_bytes_are_rows_or_an_error_with_the_files_name(
    folder: Path, head: bytes, content: bytes, ending: str
) -> None:
    path = folder / f"e{ending}"
    path.write_bytes(head + content)
    message = str(path)
    try:
        for row, where in read_rows(str(path)):
            assert isinstance(row, dict | BadRow) and str(path) in where
    except ValueError as error:
        message = str(error)
    assert str(path) in message and "\n" not in message


@examples(40)
@given(broken=st.binary(max_size=30).filter(lambda raw: b"\n" not in raw), place=st.integers(0, 4))
def test_a_broken_line_costs_no_other_row(folder: Path, broken: bytes, place: int) -> None:
    lines = [json.dumps({"prompt": str(n)}).encode() for n in range(4)]
    lines.insert(place, b"{" + broken)
    path = folder / "f.jsonl"
    path.write_bytes(b"\n".join(lines))
    read = [row for row, _ in read_rows(str(path)) if not isinstance(row, BadRow) and "prompt" in row]
    assert [row["prompt"] for row in read] == ["0", "1", "2", "3"]


RECORDS = st.lists(st.tuples(st.sampled_from("abcdefgh"), TWO_TEXTS), min_size=2, max_size=20).map(
    lambda drawn: [parse_row({"prompt": prompt, "candidates": answers}) for prompt, answers in drawn]
)


@examples(50)
@given(records=RECORDS, fraction=st.floats(0, 0.99), seed=st.integers(0, 9), random=st.randoms(use_true_random=False))
def test_a_split_shares_no_prompt_loses_none_and_ignores_the_order(
    records: list[Any], fraction: float, seed: int, random: Any
) -> None:
    prompts = {record.prompt for record in records}
    if fraction and max(1, round(fraction * len(prompts))) >= len(prompts):
        with pytest.raises(ValueError, match="to leave training prompts"):
            split_by_prompt(records, fraction, seed)
        return
    train, held_out = split_by_prompt(records, fraction, seed)
    assert Counter(map(repr, train + held_out)) == Counter(map(repr, records))
    held_out_prompts = {record.prompt for record in held_out}
    assert not held_out_prompts & {record.prompt for record in train}
    assert len(held_out_prompts) == (max(1, round(fraction * len(prompts))) if fraction else 0)
    mixed = random.sample(records, len(records))
    assert {record.prompt for record in split_by_prompt(mixed, fraction, seed)[1]} == held_out_prompts


@examples(50)
@given(records=RECORDS)
def test_merged_sets_have_each_prompt_once_with_each_answer_once(records: list[Any]) -> None:
    merged = merge_sets(records)
    expected: dict[Any, dict[str, None]] = {}
    for record in records:
        expected.setdefault(record.prompt, {}).update((answer.text, None) for answer in record.candidates)
    assert {one.prompt: [answer.text for answer in one.candidates] for one in merged} == {
        prompt: list(answers) for prompt, answers in expected.items()
    }
    assert list(merge_sets(merged)) == merged


@examples(150)
@given(text=TEXTS, form=st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]), blank=st.sampled_from(["\n", "  ", "\u3000"]))
def test_prompts_that_say_the_same_have_one_normal_form(text: str, form: str, blank: str) -> None:
    expected = normal_form((Message("user", text),))
    rewritten = unicodedata.normalize(form, f"{blank}{text.replace(' ', blank)}\u200b")  # type: ignore[arg-type]
    assert normal_form((Message("user", rewritten),)) == expected
    assert normal_form((Message("user", text.casefold()),)) == expected
    assert normal_form((Message("user", expected),)) == expected


@examples(50)
@given(rows=st.lists(st.fixed_dictionaries({"prompt": TEXTS, "candidates": TWO_TEXTS}), min_size=1, max_size=4))
def test_rows_in_memory_give_the_sets_of_a_file(folder: Path, rows: list[Any]) -> None:
    path = folder / "g.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    of_file, in_memory = load_sets(str(path)), load_sets(rows)
    assert [(one.prompt, one.candidates) for one in of_file] == [(one.prompt, one.candidates) for one in in_memory]
