"""Token ids as text with special tokens told apart, and the template's own text of the same chat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lit_align.data.encoder import Encoder
from lit_align.records import Candidate, Prompt, answer_turn, prompt_turns, template_arguments

REFUSALS = (TemplateError, ValueError, TypeError)
"""What a template raises at a chat that it does not take."""


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
    sequence, start = [int(id_) for id_ in before], _decoded(tokenizer, before)
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
        ours: the tokens' text behind these; empty where the template only goes on.
        refused: what the template or its Jinja says where it does not write the chat.
    """

    template: str | None
    same: int = 0
    ours: str = ""
    refused: str = ""

    @property
    def differs(self) -> bool:
        """Whether a token is not what the template writes at its place."""
        return bool(self.ours or self.refused)

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
    if encoder.tokenizer.chat_template is None:
        return Comparison(None)
    try:
        template = rendered(encoder, prompt, answer)
    except REFUSALS as error:
        return Comparison(None, refused=str(error))
    text = _decoded(encoder.tokenizer, ids)
    if cut:
        return _compare_ends(template, text)
    same = _common(template, text)
    return Comparison(template, same, text[same:])


def rendered(encoder: Encoder, prompt: Prompt, answer: Candidate) -> str:
    """What the template writes for the whole chat."""
    return _written(encoder, [*prompt_turns(prompt), answer_turn(answer)], template_arguments(prompt))


def unwritten(encoder: Encoder, prompt: Prompt, answer: Candidate, name: str) -> Iterator[str]:
    """Names of those parts of a chat without which the template writes the same text.

    Args:
        encoder: whose template it is.
        prompt: the chat so far.
        answer: the assistant's turn.
        name: what the answer is called.
    """
    if encoder.tokenizer.chat_template is None:
        return
    turns, arguments = [*prompt_turns(prompt), answer_turn(answer)], template_arguments(prompt)
    with suppress(*REFUSALS):  # said where the texts are compared
        whole = _written(encoder, turns, arguments)
        for key in arguments:
            if _written(encoder, turns, {k: v for k, v in arguments.items() if k != key}) == whole:
                yield f"`{key}`"
        for at, turn in enumerate(turns):
            place = name if at == len(prompt) else f"turn {at + 1}"
            for key in (key for key, value in turn.items() if key != "role" and value):
                emptied = {**turn, key: ""} if key == "content" else {k: v for k, v in turn.items() if k != key}
                if _written(encoder, [*turns[:at], emptied, *turns[at + 1 :]], arguments) == whole:
                    yield f"`{key}` of {place}"


def _written(encoder: Encoder, turns: list[dict[str, Any]], arguments: dict[str, Any]) -> str:
    return str(encoder.tokenizer.apply_chat_template(turns, **arguments, tokenize=False))


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
