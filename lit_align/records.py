"""The records that travel from a data file to the loss: plain, typed, frozen, free of torch.

A row of a file becomes a :class:`CandidateSet` or a :class:`PreferencePair`; judging and selecting
turn candidate sets into pairs. On-policy and off-policy data are the same records: only `Origin`
tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Origin(str, Enum):
    """Where a pair's completions come from."""

    OFF_POLICY = "off"
    ON_POLICY = "on"


class Stage(str, Enum):
    """The two stages of alignment (arXiv 2508.10530)."""

    INJECTION = "injection"
    FINE_TUNING = "fine_tuning"


class FinishReason(str, Enum):
    """Why a completion ended: at an end-of-turn token, or because it was cut at a length limit."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


Prompt = tuple[Message, ...]
"""A prompt is always a chat: plain text is one turn of the user."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One completion of a prompt.

    Args:
        text: the completion, without template or end-of-turn token.
        score: a judge's score, higher is better; None where nobody has scored it.
        model: the name of the model that wrote it, where known.
        finish_reason: a completion that was cut (`LENGTH`) gets no end-of-turn token in training.
        token_ids: the ids as they were sampled, end-of-turn token included; they are trained on as
            they are, since tokenising the text again may split it differently.
    """

    text: str
    score: float | None = None
    model: str | None = None
    finish_reason: FinishReason = FinishReason.STOP
    token_ids: tuple[int, ...] | None = None


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
        rejected: the other one.
        margin: the chosen score minus the rejected score; None where there are no scores.
        origin: off-policy (from data) or on-policy (sampled from the policy).
        step_sampled: the optimizer step at which an on-policy pair was sampled.
        target: the text of SLiC-HF's regulariser target, for rows that carry one.
        row: the data row as it was read.
        where: file and row, for error messages.
    """

    prompt: Prompt
    chosen: Candidate
    rejected: Candidate
    margin: float | None = None
    origin: Origin = Origin.OFF_POLICY
    step_sampled: int | None = None
    target: str | None = None
    row: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""


def prompt_text(prompt: Prompt) -> str:
    """The prompt as plain text: a single user turn as it is, a longer chat as `role: content` lines."""
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in prompt)
