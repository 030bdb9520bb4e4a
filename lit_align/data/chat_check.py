"""Finds what a chat template silently makes of rows: counts it, and warns at the first row."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_warn

from lit_align.policy.chat_template import PROBE, ChatTemplate, PlainText, holds
from lit_align.records import Chat
from lit_align.rows.loading import Record, as_set

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKERS = "template_markers_in_text"
DROPPED = "turn_dropped_by_template"
_BRACKETED = re.compile(r"<[^\w\s<>/][^<>\s]{0,40}>|<<\w+>>|\[/?[A-Z_]{2,}\]|\[[^\w\s\[\]][^\[\]\s]{0,30}\]")
_REASONING = ("reasoning_content", "reasoning", "thinking")  # transformers gives each under all three names


class ChatCheck:
    """Looks at records before they are tokenised.

    Args:
        tokenizer: its special tokens are markers.
        template: what it writes around a user's turn are markers, too.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | PlainText) -> None:
        self._template = template
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        around = template.user_turn.replace(PROBE, " ")
        markers = {m for m in (*tokenizer.all_special_tokens, *added, *_BRACKETED.findall(around)) if m.strip()}
        self._markers = re.compile("|".join(map(re.escape, sorted(markers, key=len, reverse=True))) or r"(?!)")
        self._said: set[str] = set()

    def check(self, record: Record, written_prompt: str, counts: Counter[str]) -> None:
        """Looks for markers in the texts, for turns that the prompt lacks, and for keys that the template never reads.

        Args:
            record: a row's.
            written_prompt: its prompt as the template writes it.
            counts: `template_markers_in_text`, `turn_dropped_by_template`, `unused_key/NAME` and `unused_column/tools`
                are counted here, each once for the record.
        """
        counts.update(set(self._unread(record)))
        marker = self._marker(record)
        if marker is not None:
            what = (
                f"the text {_around(marker)} holds {marker[0]!r}, a marker of the chat template or a special token: "
                "the model reads it as one. Rows are texts without the template, which is put around them here"
            )
            self._count(MARKERS, record, counts, what)
        for message in record.prompt:
            if message.role in ("system", "developer", "user") and not holds(written_prompt, message.content):
                what = f"the chat template leaves out the {message.role}'s turn {message.content[:60]!r}"
                self._count(DROPPED, record, counts, what)
                return

    def _marker(self, record: Record) -> re.Match[str] | None:
        chat = as_set(record)
        texts = [*(m.content for m in chat.prompt), *(c.text for c in chat.candidates if c.token_ids is None)]
        return next((match for text in texts if (match := self._markers.search(text))), None)

    def _unread(self, record: Record) -> Iterator[str]:
        """The keys and columns of the record that this template never reads."""
        chat = as_set(record)
        for turn in (*(m.turn for m in chat.prompt), *(c.turn for c in chat.candidates)):
            if turn:
                keys = json.loads(turn).keys() - {"role", "content"}
                yield from (f"unused_key/{key}" for key in keys if not self._reads(key))
        if isinstance(chat.prompt, Chat):
            if chat.prompt.tools and not self._reads("tools"):
                yield "unused_column/tools"
            settings: dict[str, Any] = json.loads(chat.prompt.template_kwargs or "{}")
            yield from (f"unused_key/{key}" for key in settings if not self._reads(key))

    def _reads(self, key: str) -> bool:
        return any(name in self._template.source for name in (_REASONING if key in _REASONING else (key,)))

    def _count(self, kind: str, record: Record, counts: Counter[str], what: str) -> None:
        counts[kind] += 1
        if kind not in self._said:
            self._said.add(kind)
            rank_zero_warn(f"{record.where}: {what}. It is said once, and counted for all rows")


def _around(marker: re.Match[str]) -> str:
    """The text about a marker."""
    return repr(marker.string[max(0, marker.start() - 20) : marker.end() + 20])
