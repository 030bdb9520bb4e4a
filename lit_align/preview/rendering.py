"""Token ids as text with special tokens told apart, and the template's own text of the same chat."""

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
    """The text of token ids.

    Args:
        tokenizer: that made them.
        ids: to be shown.
        before: the ids in front of them; some tokenizers write a blank or none accordingly.
    """
    special = special_ids(tokenizer)
    sequence = [int(id_) for id_ in before]
    start = _decoded(tokenizer, before)
    shown: list[Piece] = []
    for of_kind, run in groupby(map(int, ids), key=special.__contains__):
        for part in ([id_] for id_ in run) if of_kind else [list(run)]:
            sequence += part
            text = _decoded(tokenizer, sequence)
            shown.append(Piece(text[len(start) :], of_kind))
            start = text
    return [piece for piece in shown if piece.text]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of tokens that stand for no text: BOS, end of turn, roles and the like."""
    added = tokenizer.added_tokens_decoder
    return frozenset([*tokenizer.all_special_ids, *(id_ for id_, token in added.items() if token.special)])


@dataclass(frozen=True)
class Comparison:
    """The text of a prompt and an answer beside what the template writes for the whole chat.

    Args:
        template: the template's text; None where there is no template.
        same: how many of its characters are also those of the tokens.
        ours: the tokens' text behind these.
        refused: what the template or its Jinja says where it does not write the chat.
    """

    template: str | None
    same: int = 0
    ours: str = ""
    refused: str = ""

    @property
    def differs(self) -> bool:
        """Whether a token is not what the template writes at its place."""
        return bool(self.refused or (self.ours and self.rest.strip()))

    @property
    def rest(self) -> str:
        """What the template writes where the two part."""
        return (self.template or "")[self.same :]


def compare(encoder: Encoder, prompt: Prompt, answer: Candidate, ids: Sequence[int], cut: int = 0) -> Comparison:
    """Holds token ids against the template's own rendering of prompt and answer.

    Args:
        encoder: that made the ids.
        prompt: the chat so far.
        answer: the assistant's turn.
        ids: of both.
        cut: tokens cut off the left end, which are left out of the comparison.
    """
    if not isinstance(encoder.template, ChatTemplate):
        return Comparison(None)
    try:
        template = encoder.template.write_whole(prompt, answer)
    except ChatRefused as error:
        return Comparison(None, refused=str(error))
    text = _decoded(encoder.tokenizer, ids)
    if cut:
        return _compare_ends(template, text)
    same = _common(template, text)
    return Comparison(template, same, text[same:])


def unwritten(encoder: Encoder, prompt: Prompt, answer: Candidate, name: str) -> list[str]:
    """Names of those parts of a chat without which the template writes the same prompt and the same whole chat.

    Args:
        encoder: whose template it is.
        prompt: the chat so far.
        answer: the assistant's turn.
        name: what the answer is called.
    """
    texts = _prompt_and_whole(encoder, prompt, answer)
    if texts is None:
        return []
    parts = _without_each(prompt, answer, name)
    return [part for part, chat, turn in parts if _prompt_and_whole(encoder, chat, turn) == texts]


def changes(encoder: Encoder, prompt: Prompt, answer: Candidate) -> bool:
    """Whether the template writes an answer's text otherwise, blanks aside."""
    whole = _written(encoder, prompt, answer)
    return whole is not None and not answer.turn and not holds(whole, answer.text)


def _prompt_and_whole(encoder: Encoder, prompt: Prompt, answer: Candidate) -> tuple[str, str] | None:
    """The prompt with its generation prompt, and the whole chat; None where :func:`_written` is."""
    whole = _written(encoder, prompt, answer)
    try:
        return None if whole is None else (encoder.template.write_prompt(prompt), whole)
    except ChatRefused:
        return None


def _written(encoder: Encoder, prompt: Prompt, answer: Candidate) -> str | None:
    """The whole chat; None where there is no template, or it does not write the chat."""
    if not isinstance(encoder.template, ChatTemplate):
        return None
    try:
        return encoder.template.write_whole(prompt, answer)
    except ChatRefused:
        return None


def _without_each(prompt: Prompt, answer: Candidate, name: str) -> Iterator[tuple[str, Prompt, Candidate]]:
    """Each part of a chat by its name, with the chat that lacks it."""
    tools, kwargs = (prompt.tools, prompt.template_kwargs) if isinstance(prompt, Chat) else ("", "")
    if tools:
        yield "`tools`", Chat(prompt, "", kwargs), answer
    for key in json.loads(kwargs or "{}"):
        others = {k: v for k, v in json.loads(kwargs).items() if k != key}
        yield f"`{key}`", Chat(prompt, tools, json.dumps(others)), answer
    for at, message in enumerate(prompt):
        for key, content, turn in _parts(message.content, message.turn):
            turns = [*prompt[:at], Message(message.role, content, turn), *prompt[at + 1 :]]
            yield f"`{key}` of turn {at + 1}", Chat(turns, tools, kwargs), answer
    for key, text, turn in _parts(answer.text, answer.turn):
        yield f"`{key}` of {name}", prompt, replace(answer, text=text, turn=turn)


def _parts(content: str, turn: str) -> Iterator[tuple[str, str, str]]:
    """The keys of a turn, each with the content and the JSON of the turn without it."""
    if content and not turn:
        yield "content", "", ""
    whole = json.loads(turn or "{}")
    for key in (key for key, value in whole.items() if key != "role" and value):
        others = {**whole, "content": ""} if key == "content" else {k: v for k, v in whole.items() if k != key}
        yield key, "" if key == "content" else content, json.dumps(others)


def _compare_ends(template: str, text: str) -> Comparison:
    """Of a cut prompt: the tokens' text behind a BOS that stays should be somewhere in the template's."""
    for skipped in range(min(len(text), 32)):
        at = template.find(text[skipped:])
        if at >= 0:
            return Comparison(template, at + len(text) - skipped)
    return Comparison(template, 0, text)


def _common(first: str, second: str) -> int:
    return next(
        (at for at, (one, other) in enumerate(zip(first, second, strict=False)) if one != other),
        min(len(first), len(second)),
    )


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode([int(id_) for id_ in ids], clean_up_tokenization_spaces=False))


def named_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> Iterator[str]:
    """Tokens with their ids."""
    for id_ in ids:
        yield f"{tokenizer.convert_ids_to_tokens(int(id_))} ({int(id_)})"
