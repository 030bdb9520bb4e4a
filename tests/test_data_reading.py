from __future__ import annotations

import csv
import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lit_align.boundary import BoundaryCallback
from lit_align.data import AlignmentDataModule, BadRow, load_records, load_sets
from lit_align.records import Candidate, CandidateSet, Message, PreferencePair
from lit_align.rows.loading import split_by_prompt
from lit_align.rows.parse import parse_row
from lit_align.rows.reading import read_rows
from tests.helpers.data_fakes import FakeSampler, LastDigit, assert_same, data_module, texts, trainer, write
from tests.helpers.tiny import tiny_tokenizer

PAIR = {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}
USER, REPLY = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}
OTHER_REPLY = {"role": "assistant", "content": "No."}
# what Arrow's inference would rewrite: dates, words for null, numbers as text, mixed and ragged candidates, nulls
RAGGED = [
    {"prompt": "2024-01-31", "candidates": ["NA", "None"], "id": 7},
    {"prompt": "007", "candidates": [{"text": "1", "score": 1, "model": "m"}, {"text": "2", "score": 0.5}], "id": "x"},
    {"prompt": [USER], "chosen": "a\u2028b", "rejected": [OTHER_REPLY], "candidates": None, "extra": {"k": [1, None]}},
]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    plain = path.with_suffix("") if path.suffix == ".gz" else path
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), plain)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "lines.json"])
def test_json_rows_come_back_as_they_were_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.startswith("a.json") and not name.startswith("a.jsonl"):
        data = json.dumps(RAGGED, indent=1).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    else:
        write_jsonl(path, RAGGED)
    assert [row for row, _ in read_rows(str(path))] == RAGGED


def test_csv_cells_stay_text_and_may_hold_json(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "chosen", "rejected", "candidates", "chosen_score", "rejected_score", "id"])
        writer.writerow(["NA", "2024-01-31", "two\nlines", "", "1.5", "", "007"])
        writer.writerow(["", json.dumps([USER, REPLY]), json.dumps([USER, OTHER_REPLY]), "", "", "", "1"])
        writer.writerow(["Hi?", "", "", json.dumps(["a", {"text": "b", "score": 2}]), "", "", "2"])
        writer.writerow(["[1, 2] is a list?", "[yes]", "no", "", "", "", "3"])
    first, second, third, fourth = load_records(str(path))
    assert isinstance(first, PreferencePair) and first.chosen == Candidate("2024-01-31", 1.5) and first.margin is None
    assert first.prompt == (Message("user", "NA"),) and first.rejected.text == "two\nlines"
    assert first.row["id"] == "007"
    assert isinstance(second, PreferencePair) and second.prompt == (Message("user", "Hi?"),)
    assert isinstance(third, CandidateSet) and third.candidates == (Candidate("a"), Candidate("b", 2.0))
    assert isinstance(fourth, PreferencePair) and fourth.chosen.text == "[yes]"


@pytest.mark.parametrize("name", ["a.parquet", "a.parquet.gz"])
def test_parquet_is_streamed_and_never_stale(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for answer in ("Yes.", "Maybe."):
        write_parquet(path, [{**PAIR, "chosen": answer, "n": 3}])
        (pair,) = load_records(str(path))
        assert isinstance(pair, PreferencePair) and pair.chosen.text == answer and pair.row["n"] == 3
    assert os.listdir(tmp_path) == [name]


def test_folders_saved_by_datasets_and_globs_and_lists(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    saved = tmp_path / "saved"
    DatasetDict({"a": Dataset.from_list([PAIR]), "b": Dataset.from_list([{**PAIR, "prompt": "B?"}])}).save_to_disk(
        saved
    )
    (pair,) = load_records(str(saved), split="b")
    assert pair.prompt[0].content == "B?" and pair.where == f"{saved}[b], row 1"
    write_jsonl(tmp_path / "y2.jsonl", [PAIR])
    write_jsonl(tmp_path / "y1.jsonl", [PAIR, PAIR])
    wheres = [where for _, where in read_rows([str(tmp_path / "y*.jsonl"), str(tmp_path / "y2.jsonl")])]
    assert [Path(w).name for w in wheres] == [
        "y1.jsonl, row 1",
        "y1.jsonl, row 2",
        "y2.jsonl, row 1",
        "y2.jsonl, row 1",
    ]


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([PAIR])
    saved, alone, folder = tmp_path / "saved", tmp_path / "alone", tmp_path / "folder"
    DatasetDict({"train_prefs": rows, "test_prefs": rows}).save_to_disk(saved)
    rows.save_to_disk(alone)
    folder.mkdir()
    rows.to_json(folder / "train.jsonl")
    with pytest.raises(ValueError, match=r"saved has no split 'train' \(it has train_prefs, test_prefs\): set "):
        load_records(str(saved))
    with pytest.raises(ValueError, match=r"folder has no split 'trian' \(.*'train'.*\): set the data's `split`"):
        load_records(str(folder), split="trian")
    for source in (str(alone), str(folder / "train.jsonl")):
        with pytest.raises(ValueError, match=r"`val_split: test` takes a split of .*, which has none: set .* `val`"):
            AlignmentDataModule(source, val_split="test").prepare(tiny_tokenizer())
        with pytest.raises(ValueError, match="`split: test` takes a split of .*, which has none: leave it out"):
            AlignmentDataModule(source, split="test").prepare(tiny_tokenizer())
    with pytest.raises(ValueError, match="`val_split` and `split` are both 'test_prefs'"):
        AlignmentDataModule(str(saved), split="test_prefs", val_split="test_prefs").prepare(tiny_tokenizer())


def test_a_name_that_is_neither_a_file_nor_on_the_hub_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(source: str, *_: Any, **__: Any) -> None:
        raise ConnectionError(f"Couldn't reach {source!r} on the Hub")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(
        FileNotFoundError, match=r"no data at 'team/rows': there is no such file or folder here, and as"
    ):
        load_records("team/rows")


def test_a_missing_file_and_an_unknown_suffix_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.jsonl.*expected a file"):
        list(read_rows(str(tmp_path / "none.jsonl")))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"a\.txt: expected a file that ends in \.jsonl"):
        list(read_rows(str(tmp_path / "a.txt")))


def test_a_broken_line_names_file_and_row_or_is_a_counted_skip(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [PAIR, "", '{"prompt": "x", ', "[1]", {**PAIR, "prompt": " "}, PAIR])
    with pytest.raises(BadRow, match=r"a\.jsonl, row 2 \(line 3\): expected one JSON object a line"):
        load_records(str(path))
    counts: Counter[str] = Counter()
    with pytest.warns(UserWarning, match=r"skipped 3 bad rows .*bad_json: 1.*row 2 \(line 3\)"):
        records = load_records(str(path), on_bad_row="skip", counts=counts)
    assert len(records) == 2
    skips = {"bad_row/bad_json": 1, "bad_row/not_an_object": 1, "bad_row/empty_prompt": 1}
    assert counts == {"rows": 5, **skips}


def test_other_broken_files_name_the_place(tmp_path: Path) -> None:
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(json.dumps(PAIR).encode() + b'\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(BadRow, match=r"latin\.jsonl, row 2: expected text in UTF-8, got b'\\xe9'"):
        load_records(str(latin))
    listed = tmp_path / "list.json"
    listed.write_text('[{"prompt": "x"},\n {"prompt": }]')
    with pytest.raises(BadRow, match=r"list\.json, line 2: expected a JSON list of objects"):
        load_records(str(listed))
    with pytest.raises(ValueError, match=r"a\.parquet: expected a Parquet file"):
        (tmp_path / "a.parquet").write_bytes(b"no")
        load_records(str(tmp_path / "a.parquet"))
    table = tmp_path / "a.csv"
    table.write_text("prompt,chosen,rejected\nHi?,yes\n")
    with pytest.raises(BadRow, match=r"a\.csv, row 1 \(line 2\): expected 3 cells as in the header, got 2"):
        load_records(str(table))
    table.write_text("prompt,chosen,rejected\nHi?,yes,no,more\n")
    with pytest.raises(BadRow, match=r"row 1 \(line 2\): expected 3 cells as in the header, got 4"):
        load_records(str(table))


def test_nothing_left_is_an_error_that_shows_the_skips(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{**PAIR, "rejected": "Yes."}])
    with pytest.raises(ValueError, match=r"expected rows in .*equal_completions: 1.*row 1"):
        load_records(str(path), on_bad_row="skip")


TWO_TURNS = [USER, REPLY, {"role": "user", "content": "And?"}]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (PAIR, [USER]),
        ({**PAIR, "prompt": TWO_TURNS}, TWO_TURNS),
        ({"chosen": [USER, REPLY], "rejected": [USER, OTHER_REPLY]}, [USER]),
        ({"prompt": None, "chosen": [*TWO_TURNS, REPLY], "rejected": [*TWO_TURNS, OTHER_REPLY]}, TWO_TURNS),
        ({"prompt": "Hi?", "chosen": [USER, REPLY], "rejected": [USER, OTHER_REPLY]}, [USER]),
        ({"prompt": "Hi?", "chosen": [REPLY], "rejected": "No."}, [USER]),
        ({"prompt": [USER], "chosen": [REPLY, TWO_TURNS[2], REPLY], "rejected": [*TWO_TURNS, OTHER_REPLY]}, TWO_TURNS),
    ],
)
def test_the_forms_of_a_pair(row: dict[str, Any], prompt: list[dict[str, str]]) -> None:
    pair = parse_row(row, "f, row 1")
    assert isinstance(pair, PreferencePair)
    assert pair.prompt == tuple(Message(m["role"], m["content"]) for m in prompt)
    assert (pair.chosen.text, pair.rejected.text, pair.row) == ("Yes.", "No.", row)


def test_scores_target_and_models_are_kept() -> None:
    pair = parse_row({**PAIR, "score_chosen": 3, "rejected_score": 1.5, "target": "T"}, "")
    assert isinstance(pair, PreferencePair)
    assert (pair.chosen.score, pair.rejected.score, pair.margin, pair.target) == (3.0, 1.5, 1.5, "T")
    one = parse_row({"prompt": "Hi?", "candidates": [{"text": "a", "score": 1, "model": "m"}, "b"]}, "w")
    assert isinstance(one, CandidateSet)
    assert one.candidates == (Candidate("a", 1.0, "m"), Candidate("b")) and one.where == "w"


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        ({"prompt": "x"}, "missing_keys", "expected `prompt` with `candidates`.*got prompt"),
        ({}, "missing_keys", "got nothing"),
        ({"chosen": "a", "rejected": "b"}, "missing_keys", "expected a `prompt` beside a `chosen` of plain text"),
        ({"candidates": ["a"]}, "missing_keys", "expected a `prompt` beside `candidates`"),
        ({**PAIR, "prompt": " \n"}, "empty_prompt", "expected a prompt with text"),
        ({**PAIR, "chosen": ""}, "empty_completion", "expected `chosen` to have text"),
        ({**PAIR, "rejected": "Yes."}, "equal_completions", "expected two different completions"),
        ({**PAIR, "rejected": 3}, "wrong_type", "`rejected` as text or as a list of messages, got int 3"),
        ({**PAIR, "prompt": 3}, "wrong_type", "`prompt` as text or as a list of messages, got int 3"),
        ({**PAIR, "chosen_score": float("nan")}, "bad_score", "`chosen_score` as a finite number, got nan"),
        ({**PAIR, "chosen_score": "high"}, "wrong_type", "`chosen_score` as a number"),
        ({**PAIR, "target": 1}, "wrong_type", "`target` as text"),
        ({**PAIR, "chosen": [{"role": "robot", "content": "x"}]}, "unknown_role", "got 'robot'"),
        ({**PAIR, "chosen": [{"role": "assistant", "content": 1}]}, "wrong_type", r"content of `chosen\[0\]` as text"),
        ({**PAIR, "chosen": [{"role": "assistant"}]}, "missing_keys", "to have `role` and `content`"),
        ({**PAIR, "chosen": ["x"]}, "wrong_type", r"`chosen\[0\]` as a message"),
        ({**PAIR, "chosen": [USER]}, "last_turn", "to be the assistant's, got user's"),
        ({**PAIR, "prompt": [USER, REPLY]}, "last_turn", "end with the user's turn, got assistant's"),
        ({"chosen": [REPLY], "rejected": [OTHER_REPLY]}, "empty_prompt", "expected a prompt before"),
        ({"chosen": [USER, REPLY], "rejected": [TWO_TURNS[2], OTHER_REPLY]}, "prompts_differ", "share all turns"),
        ({"prompt": "Else?", "chosen": [USER, REPLY], "rejected": "No."}, "prompts_differ", "got 'Hi\\?'"),
        ({"prompt": "x", "candidates": []}, "no_candidates", "empty list"),
        ({"prompt": "x", "candidates": "a"}, "wrong_type", "`candidates` as a list"),
        ({"prompt": "x", "candidates": [1]}, "wrong_type", r"`candidates\[0\]` as text or as an object"),
        ({"prompt": "x", "candidates": ["a", {"score": 1}]}, "missing_keys", r"`candidates\[1\]` to have `text`"),
        ({"prompt": "x", "candidates": [{"text": ""}]}, "empty_completion", r"`candidates\[0\]` to have text"),
        ({"prompt": "x", "candidates": [{"text": "a", "score": True}]}, "wrong_type", "as a number, got bool"),
        ({"prompt": "x", "candidates": [{"text": "a", "score": float("inf")}]}, "bad_score", "got inf"),
        ({**PAIR, "prompt": "a\ud800"}, "not_utf8", r"`prompt` as Unicode text, got '\\ud800' at character 1"),
        ({"prompt": "x", "candidates": ["\ud83d"]}, "not_utf8", r"`candidates\[0\]` as Unicode text"),
        ({**PAIR, "chosen": [{"role": "assistant", "content": "\udc00"}]}, "not_utf8", r"`chosen\[0\]` as Unicode"),
    ],
)
def test_bad_rows_say_what_was_expected_and_what_came(row: dict[str, Any], reason: str, message: str) -> None:
    with pytest.raises(BadRow, match=message) as caught:
        parse_row(row, "f.jsonl, row 9")
    assert caught.value.reason == reason and str(caught.value).startswith("f.jsonl, row 9: ")


@pytest.mark.parametrize("more", [{}, {"candidates": []}, {"candidates": None, "chosen": None, "id": 3}])
def test_a_prompt_alone_is_a_row_where_it_is_wanted(more: dict[str, Any]) -> None:
    one = parse_row({"prompt": "Hi?", **more}, "w", prompts_alone=True)
    assert isinstance(one, CandidateSet) and (one.prompt[0].content, one.candidates, one.where) == ("Hi?", (), "w")
    with pytest.raises(BadRow, match="expected `prompt` with `candidates`|empty list"):
        parse_row({"prompt": "Hi?", **more}, "w")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Hi?", "chosen": "Yes."}, "missing_keys"),  # half of a pair
        ({"prompt": "Hi?", "candidates": ""}, "wrong_type"),
        ({"prompt": " "}, "empty_prompt"),
        ({"prompt": "Hi?", "target": 1}, "wrong_type"),
        ({"candidates": []}, "missing_keys"),
    ],
)
def test_where_prompts_may_stand_alone_other_mistakes_stay_errors(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        parse_row(row, "w", prompts_alone=True)
    assert caught.value.reason == reason


def test_prompts_alone_train_on_policy_beside_rows_with_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [
        {**PAIR, "rejected": "No!"},
        {"prompt": "A?"},
        {"prompt": "B?", "candidates": []},
        {"prompt": "A?", "candidates": ["1", "2"]},
    ]
    data = data_module(write(tmp_path / "a.jsonl", rows), on_policy_share=1.0, relabel=True)
    assert "2 of 4 rows" in capsys.readouterr().out
    counted = {key: data.counts[key] for key in ("rows", "prompt_only", "pairs", "prompts", "single_candidate")}
    assert counted == {"rows": 4, "prompt_only": 2, "pairs": 2, "prompts": 3, "single_candidate": 0}
    assert [len(one.candidates) for one in data.train_sets] == [2, 2, 0]
    shown = {prompt for _ in range(6) for prompt, _, _, _ in texts(data.next_batch())}
    assert len(shown) == 3  # each prompt, also the one that has no candidates


def test_prompts_alone_need_a_sampler_a_judge_and_an_on_policy_run(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", [{"prompt": f"q{n}"} for n in range(8)])
    for lacking in ("sampler", "judge"):
        with pytest.raises(
            BadRow, match=r"a\.jsonl, row 1: expected `prompt` with `candidates`.*alone takes a sampler"
        ):
            data_module(train, 0, 1, **{lacking: None})
    data = data_module(train, on_policy_share=1.0)
    assert len(data.train_sets) == 8 and not data.train_pairs
    assert all(row[3] for row in texts(data.next_batch()))
    data.set_on_policy_share(0.0)
    with pytest.raises(ValueError, match=r"none is left \(rows: 8, prompt_only: 8.*AlwaysOnPolicy"):
        data.next_batch()


def test_the_boundary_is_not_measured_on_prompts_alone(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"q{n}"} for n in range(12)]
    more: dict[str, Any] = dict(sampler=FakeSampler(), judge=LastDigit(), val_fraction=0.5)
    data = AlignmentDataModule(write(tmp_path / "a.jsonl", rows), **more)
    data.trainer = trainer(callbacks=[BoundaryCallback()], max_steps=4)
    with pytest.raises(ValueError, match=r"held-out prompts with static candidates, .*is left \(.*val/prompts: 6"):
        data.setup("fit")
    rows += [{**PAIR, "prompt": f"p{n}"} for n in range(12)]
    data = AlignmentDataModule(write(tmp_path / "b.jsonl", rows), **more)
    data.trainer = trainer(callbacks=[BoundaryCallback()], max_steps=4)
    data.setup("fit")
    assert data.measured_on and all(one.candidates for one in data.measured_on)
    assert not all(one.candidates for one in data.evaluated_on)


def test_load_sets_gives_one_set_a_prompt(tmp_path: Path) -> None:
    rows = [PAIR, {**PAIR, "rejected": "Maybe."}, {"prompt": "B?", "candidates": ["c"]}]
    first, second = load_sets(str(write_jsonl(tmp_path / "a.jsonl", rows)))
    assert [c.text for c in first.candidates] == ["Yes.", "No.", "Maybe."]
    assert [c.text for c in second.candidates] == ["c"]


def test_the_split_is_by_prompt_and_not_by_row_order() -> None:
    records = [parse_row({**PAIR, "prompt": f"q{i % 10}", "rejected": f"r{i}"}, str(i)) for i in range(40)]
    train, held = split_by_prompt(records, 0.3, seed=1)
    assert len({r.prompt for r in held}) == 3 and len(train) + len(held) == 40
    assert not {r.prompt for r in train} & {r.prompt for r in held}
    _, again = split_by_prompt(records[::-1], 0.3, seed=1)
    assert {r.prompt for r in again} == {r.prompt for r in held}
    _, other = split_by_prompt(records, 0.3, seed=2)
    assert {r.prompt for r in other} != {r.prompt for r in held}
    assert split_by_prompt(records, 0.0, seed=1)[1] == []
    assert len({r.prompt for r in split_by_prompt(records, 0.001, seed=1)[1]}) == 1
    with pytest.raises(ValueError, match="leave training prompts"):
        split_by_prompt(records, 0.99, seed=1)


def in_memory(kind: str, rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset, DatasetDict

    forms = {
        "list": lambda: rows,
        "iterator": lambda: iter(rows),
        "dataset": lambda: Dataset.from_list(rows),
        "splits": lambda: DatasetDict({"test": Dataset.from_list(rows[:1]), "train": Dataset.from_list(rows)}),
    }
    return forms[kind]()


@pytest.mark.parametrize("kind", ["list", "iterator", "dataset", "splits"])
def test_rows_in_memory_train_as_those_of_a_file(kind: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{**PAIR, "prompt": f"q{n}"} for n in range(6)]
    held_out = [{**PAIR, "prompt": "held out?"}]
    of_files = data_module(write(tmp_path / "a.jsonl", rows), val=write(tmp_path / "b.jsonl", held_out))
    data = data_module(in_memory(kind, rows), val=in_memory(kind, held_out))
    assert data.counts == of_files.counts and data.counts["pairs"] == 6 and data.counts["val/pairs"] == 1
    for _ in range(3):
        assert_same(data.next_batch(), of_files.next_batch())


def test_rows_that_an_iterator_gives_once_can_be_read_again() -> None:
    data = AlignmentDataModule(iter([PAIR]))
    train, _ = data.sources()
    assert len(load_records(train.rows)) == len(load_records(train.rows)) == 1


def test_a_bad_row_in_memory_is_named() -> None:
    rows: list[Any] = [PAIR, {"prompt": "q"}]
    with pytest.raises(BadRow, match=r"rows in memory, row 2: expected `prompt` with `candidates`"):
        load_records(rows)
    with pytest.raises(BadRow, match=r"rows in memory, row 2: expected a mapping of columns, got 3"):
        load_records([*rows[:1], 3])
    with pytest.raises(ValueError, match=r"expected rows in memory, got none"):
        load_records([])


def test_a_split_of_rows_in_memory_comes_from_a_dataset_dict() -> None:
    from datasets import Dataset, DatasetDict

    splits = DatasetDict({name: Dataset.from_list([{**PAIR, "prompt": name}]) for name in ("train", "test")})
    data = data_module(splits, val_split="test")
    assert (len(data.train_pairs), len(data.held_out)) == (1, 1)
    with pytest.raises(ValueError, match=r"the DatasetDict has no split 'dev' \(it has train, test\)"):
        load_records(splits, split="dev")
    with pytest.raises(ValueError, match=r"`val_split: test` takes a split of rows in memory, which has none"):
        data_module([PAIR], val_split="test")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
def test_csv_of_spreadsheets_has_other_delimiters(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "a.csv"
    cells = [["prompt", "chosen", "rejected"], ["Tea, or not?", "yes; green", "no\ttea"]]
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(cells)
    ((row, _),) = read_rows(str(path))
    assert row == dict(zip(*cells, strict=True))
