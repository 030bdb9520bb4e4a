"""Converts token ids to text with marked special tokens, and compares it with the template's own text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from lit_align.data.encoder import Encoder
from lit_align.policy.chat_template import ChatRefused, ChatTemplate, holds
from lit_align.records import Candidate, Chat, Message, Prompt


@dataclass(frozen=True)
class Piece:
    """A run of text, or one special token."""

    text: str
    special: bool


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], before: Sequence[int] = ()) -> list[Piece]:
    """Converts token ids to pieces of text.

    Args:
        tokenizer: the tokenizer that made the ids.
        ids: the ids to show.
        before: the ids in front of them, on which some tokenizers make a first blank depend.
    """
    special = special_ids(tokenizer)
    sequence = [int(id_) for id_ in before]
    start = _decode(tokenizer, before)
    shown: list[Piece] = []
    for of_kind, run in groupby(map(int, ids), key=special.__contains__):
        for part in ([id_] for id_ in run) if of_kind else [list(run)]:
            sequence += part
            text = _decode(tokenizer, sequence)
            shown.append(Piece(text[len(start) :], of_kind))
            start = text
    return [piece for piece in shown if piece.text]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of tokens that stand for no text: BOS, end of turn, roles and the like."""
    added = tokenizer.added_tokens_decoder
    return frozenset([*tokenizer.all_special_ids, *(id_ for id_, token in added.items() if token.special)])


@dataclass(frozen=True)
class Comparison:
    """The text of a prompt and an answer beside the template's text of the whole chat.

    Args:
        template: the template's text; None without a template.
        same: number of leading characters that it shares with the tokens' text.
        ours: the tokens' text behind these.
        refused: the error of the template if it does not write the chat; empty if it does.
    """

    template: str | None
    same: int = 0
    ours: str = ""
    refused: str = ""

    @property
    def differs(self) -> bool:
        """Whether the tokens' text differs from the template's, other than by its end."""
        return bool(self.refused or (self.ours and self.template_rest.strip()))

    @property
    def template_rest(self) -> str:
        """The template's text from the place on at which the two differ."""
        return (self.template or "")[self.same :]


def compare(encoder: Encoder, prompt: Prompt, answer: Candidate, ids: Sequence[int], cut: int = 0) -> Comparison:
    """Compares token ids with the template's own rendering of prompt and answer.

    Args:
        encoder: the encoder that made the ids.
        prompt: the chat so far.
        answer: the assistant's turn.
        ids: the token ids of both.
        cut: number of tokens cut off the left end, which are left out of the comparison.
    """
    if not isinstance(encoder.template, ChatTemplate):
        return Comparison(None)
    try:
        template = encoder.template.write_whole(prompt, answer)
    except ChatRefused as error:
        return Comparison(None, refused=str(error))
    text = _decode(encoder.tokenizer, ids)
    if cut:
        return _compare_ends(template, text)
    same = _common_length(template, text)
    return Comparison(template, same, text[same:])


def unwritten(encoder: Encoder, prompt: Prompt, answer: Candidate, name: str) -> list[str]:
    """Names of those parts of a chat without which the template writes the same prompt and the same whole chat.

    Args:
        encoder: the encoder with the template.
        prompt: the chat so far.
        answer: the assistant's turn.
        name: a name for the answer.
    """
    texts = _prompt_and_whole(encoder, prompt, answer)
    if texts is None:
        return []
    parts = _without_each(prompt, answer, name)
    return [part for part, chat, turn in parts if _prompt_and_whole(encoder, chat, turn) == texts]


def changes(encoder: Encoder, prompt: Prompt, answer: Candidate) -> bool:
    """Whether the template changes an answer's text, regardless of whitespace."""
    whole = _write_whole(encoder, prompt, answer)
    return whole is not None and not answer.turn and not holds(whole, answer.text)


def _prompt_and_whole(encoder: Encoder, prompt: Prompt, answer: Candidate) -> tuple[str, str] | None:
    """The prompt with its generation prompt, and the whole chat; None if the template refuses either."""
    whole = _write_whole(encoder, prompt, answer)
    try:
        return None if whole is None else (encoder.template.write_prompt(prompt), whole)
    except ChatRefused:
        return None


def _write_whole(encoder: Encoder, prompt: Prompt, answer: Candidate) -> str | None:
    """Writes the whole chat; None if there is no template, or it refuses the chat."""
    if not isinstance(encoder.template, ChatTemplate):
        return None
    try:
        return encoder.template.write_whole(prompt, answer)
    except ChatRefused:
        return None


def _without_each(prompt: Prompt, answer: Candidate, name: str) -> Iterator[tuple[str, Prompt, Candidate]]:
    """Yields the name of each part of a chat, with the chat that lacks it."""
    tools, kwargs = (prompt.tools, prompt.template_kwargs) if isinstance(prompt, Chat) else ("", "")
    if tools:
        yield "`tools`", Chat(prompt, "", kwargs), answer
    for key in json.loads(kwargs or "{}"):
        others = {k: v for k, v in json.loads(kwargs).items() if k != key}
        yield f"`{key}`", Chat(prompt, tools, json.dumps(others)), answer
    for position, message in enumerate(prompt):
        for key, content, turn in _parts(message.content, message.turn):
            turns = [*prompt[:position], Message(message.role, content, turn), *prompt[position + 1 :]]
            yield f"`{key}` of turn {position + 1}", Chat(turns, tools, kwargs), answer
    for key, text, turn in _parts(answer.text, answer.turn):
        yield f"`{key}` of {name}", prompt, replace(answer, text=text, turn=turn)


def _parts(content: str, turn: str) -> Iterator[tuple[str, str, str]]:
    """Yields the keys of a turn, each with the content and the JSON of the turn without it."""
    if content and not turn:
        yield "content", "", ""
    whole = json.loads(turn or "{}")
    for key in (key for key, value in whole.items() if key != "role" and value):
        others = {**whole, "content": ""} if key == "content" else {k: v for k, v in whole.items() if k != key}
        yield key, "" if key == "content" else content, json.dumps(others)


def _compare_ends(template: str, text: str) -> Comparison:
    """Compares a cut prompt: the tokens' text, behind a BOS that stays, should be a part of the template's."""
    for skipped in range(min(len(text), 32)):
        start = template.find(text[skipped:])
        if start >= 0:
            return Comparison(template, start + len(text) - skipped)
    return Comparison(template, 0, text)


def _common_length(first: str, second: str) -> int:
    """The number of characters that two texts begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(first), len(second)))


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode([int(id_) for id_ in ids], clean_up_tokenization_spaces=False))


def named_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> Iterator[str]:
    """Yields tokens with their ids, for a message."""
    for id_ in ids:
        yield f"{tokenizer.convert_ids_to_tokens(int(id_))} ({int(id_)})"
