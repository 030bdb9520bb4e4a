"""The records on the way from a data file to the loss: plain, typed, frozen, and free of torch.

A row of a file becomes a :class:`CandidateSet` or a :class:`PreferencePair`; judging and selecting
turn candidate sets into pairs. On-policy and off-policy data are the same records and differ only in `Origin`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Origin(StrEnum):
    """The source of a pair's completions: static data, or the policy."""

    OFF_POLICY = "off"
    ON_POLICY = "on"


class Stage(StrEnum):
    """The two stages of alignment (arXiv 2508.10530)."""

    INJECTION = "injection"
    FINE_TUNING = "fine_tuning"


class FinishReason(StrEnum):
    """Why a completion ended: at an end-of-turn token, or because it was cut at a length limit."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat.

    Args:
        role: the speaker, such as "user".
        content: the turn as text.
        turn: the whole turn as JSON, for the chat template, if it holds more than role and text: `tool_calls`,
            `reasoning_content`, `name`, content in parts. Empty otherwise.
    """

    role: str
    content: str
    turn: str = ""

    def __repr__(self) -> str:  # seeds and fingerprints depend on it: a plain turn's must not change
        turn = f", turn={self.turn!r}" if self.turn else ""
        return f"Message(role={self.role!r}, content={self.content!r}{turn})"


class Chat(tuple[Message, ...]):
    """The turns of a prompt with tools or settings of its own for the chat template.

    It never equals the same turns without these.

    Args:
        turns: the chat so far.
        tools: the tools that the model may call, as JSON.
        template_kwargs: further variables of the chat template, as JSON.
    """

    tools: str
    template_kwargs: str

    def __new__(cls, turns: Iterable[Message], tools: str = "", template_kwargs: str = "") -> Chat:
        chat = super().__new__(cls, turns)
        chat.tools = tools
        chat.template_kwargs = template_kwargs
        return chat

    def __getnewargs__(self) -> tuple[tuple[Message, ...], str, str]:
        return tuple(self), self.tools, self.template_kwargs

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chat) and self.__getnewargs__() == other.__getnewargs__()

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.__getnewargs__())

    def __repr__(self) -> str:
        return f"Chat({tuple(self)!r}, tools={self.tools!r}, template_kwargs={self.template_kwargs!r})"


Prompt = tuple[Message, ...]
"""A prompt is always a chat. Plain text is a single turn of the user; with tools or settings it is a `Chat`."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One completion of a prompt.

    Args:
        text: the completion as judges read it, without template and end-of-turn token.
        score: a judge's score, higher is better; None if it has none.
        model: the name of the model that wrote it; None if unknown.
        finish_reason: a completion that was cut (`LENGTH`) gets no end-of-turn token in training.
        token_ids: the ids as they were sampled, end-of-turn token included; training uses these ids,
            since tokenising the text again may split it differently.
        turn: the assistant's whole turn as JSON, for the chat template, if it holds more than its text.
    """

    text: str
    score: float | None = None
    model: str | None = None
    finish_reason: FinishReason = FinishReason.STOP
    token_ids: tuple[int, ...] | None = None
    turn: str = ""


@dataclass(frozen=True, slots=True)
class CandidateSet:
    """A prompt with its candidates.

    Args:
        prompt: the chat so far.
        candidates: any number of completions.
        row: the data row as it was read, for rules that need more than the prompt.
        where: file and row, for error messages.
    """

    prompt: Prompt
    candidates: tuple[Candidate, ...]
    row: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt with a chosen and a rejected completion.

    Args:
        prompt: the chat so far.
        chosen: the preferred completion.
        rejected: the other completion.
        margin: the chosen score minus the rejected score; None without scores.
        origin: off-policy (from data) or on-policy (sampled from the policy).
        target: the text of SLiC-HF's regulariser target, for rows that carry one.
        row: the data row as it was read.
        where: file and row, for error messages.
    """

    prompt: Prompt
    chosen: Candidate
    rejected: Candidate
    margin: float | None = None
    origin: Origin = Origin.OFF_POLICY
    target: str | None = None
    row: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""


def prompt_text(prompt: Prompt) -> str:
    """The prompt as plain text: a single user turn as it is, a longer chat as `role: content` lines, tools first."""
    tools = prompt.tools if isinstance(prompt, Chat) else ""
    if len(prompt) == 1 and prompt[0].role == "user" and not tools:
        return prompt[0].content
    lines = [f"tools: {tools}"] if tools else []
    return "\n".join([*lines, *(f"{message.role}: {message.content}" for message in prompt)])


def is_plain(prompt: Prompt) -> bool:
    """Whether the chat template gets only roles and texts."""
    return not isinstance(prompt, Chat) and not any(message.turn for message in prompt)


def prompt_identity(prompt: Prompt) -> str:
    """A text that is the same only for equal prompts: the prompt's text and, if there is more, the template's input."""
    if is_plain(prompt):
        return prompt_text(prompt)
    kwargs = prompt.template_kwargs if isinstance(prompt, Chat) else ""
    return "\0".join([prompt_text(prompt), kwargs, *(message.turn for message in prompt)])


def prompt_turns(prompt: Prompt) -> list[dict[str, Any]]:
    """The turns as a chat template takes them."""
    return [_as_turn(message.role, message.content, message.turn) for message in prompt]


def unscored(candidate: Candidate) -> Candidate:
    """A candidate with only the parts that a judge reads: no score, no model, no ids."""
    return Candidate(candidate.text, turn=candidate.turn)


def answer_turn(candidate: Candidate) -> dict[str, Any]:
    """The assistant's turn as a chat template takes it."""
    return _as_turn("assistant", candidate.text, candidate.turn)


def template_arguments(prompt: Prompt) -> dict[str, Any]:
    """The arguments of a chat template beside the turns: `tools` and the prompt's own settings."""
    if not isinstance(prompt, Chat):
        return {}
    tools = {"tools": json.loads(prompt.tools)} if prompt.tools else {}
    return {**tools, **(json.loads(prompt.template_kwargs) if prompt.template_kwargs else {})}


def _as_turn(role: str, text: str, turn: str) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(turn) if turn else {"role": role, "content": text}
    return whole
