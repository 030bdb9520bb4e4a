"""What a template makes of rows without a word is counted and said once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lit_align.data import AlignmentDataModule, Encoder
from lit_align.rows.parse import parse_row
from tests.helpers.data_fakes import write
from tests.helpers.tiny import CHAT_TEMPLATE, tiny_tokenizer

MARKED = "<|im_start|>user\nIs it warm?<|im_end|>\n<|im_start|>assistant\n"
PLAIN_TURNS = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"


def looked_at(template: str | None = CHAT_TEMPLATE, **row: Any) -> Counter[str]:
    counts: Counter[str] = Counter()
    record = parse_row({"prompt": "Is it warm?", "chosen": "Yes.", "rejected": "No.", **row}, "rows.jsonl, row 3")
    Encoder(tiny_tokenizer(template)).check_record(record, counts)
    return counts


@pytest.mark.parametrize(
    ("row", "marker"),
    [
        ({"prompt": MARKED}, "<|im_start|>"),
        ({"chosen": "Yes.<|im_end|>\n"}, "<|im_end|>"),
        ({"prompt": "[INST] Is it warm? [/INST]"}, "[INST]"),
    ],
)
def test_markers_in_a_text_are_said_with_the_row(row: dict[str, Any], marker: str) -> None:
    template = PLAIN_TURNS if "INST" in marker else CHAT_TEMPLATE
    with pytest.warns(UserWarning, match=r"rows\.jsonl, row 3: the text .* a marker of the chat template") as caught:
        assert looked_at(template, **row) == {"template_markers_in_text": 1}
    assert repr(marker) in str(caught[0].message)


@pytest.mark.parametrize("text", ["a < b > c", "[1] and [note]", "<think>\nHm.\n</think>\n\nYes.", "<b>bold</b>"])
def test_brackets_of_a_text_are_no_markers(text: str) -> None:
    opened = CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    assert not looked_at(opened, prompt=text, rejected=text + ".")


def test_a_turn_that_the_template_leaves_out_is_said_with_the_row() -> None:
    without_system = CHAT_TEMPLATE.replace("in messages", "in messages if message.role != 'system'")
    with pytest.warns(UserWarning, match=r"row 3: the chat template leaves out the system's turn 'Be brief\.'"):
        assert looked_at(without_system, system="Be brief.") == {"turn_dropped_by_template": 1}
    assert not looked_at(system="Be brief.")
    assert not looked_at(
        CHAT_TEMPLATE.replace("['content']", "['content'] | replace(' ', '\\n')"), system=" Be brief. "
    )


def test_what_the_template_never_reads_is_counted_as_unused() -> None:
    turns = [{"role": "assistant", "content": "Yes.", "reasoning_content": "It is.", "name": "bot"}]
    row: dict[str, Any] = {"tools": [{"name": "weather"}], "chat_template_kwargs": {"mood": "calm"}, "chosen": turns}
    unread = {"unused_key/reasoning_content", "unused_key/name", "unused_key/mood", "unused_column/tools"}
    assert looked_at(**row) == dict.fromkeys(unread, 1)
    reads = CHAT_TEMPLATE + "{# tools mood message.name message.thinking #}"
    assert not looked_at(reads, **row)


def test_a_run_counts_rows_and_says_each_thing_once(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    rows = [{"prompt": f"{MARKED} {n}", "chosen": "Yes.", "rejected": "No."} for n in range(3)]
    data = AlignmentDataModule(write(tmp_path / "rows.jsonl", rows), val_fraction=0.4)
    data.prepare(tiny_tokenizer())
    assert data.counts["template_markers_in_text"] + data.counts["val/template_markers_in_text"] == 3
    assert sum("holds '<|im_start|>'" in str(warning.message) for warning in recwarn) == 1
