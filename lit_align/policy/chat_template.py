"""Writes chats as text, as the model reads and answers them at inference: by the chat template or as plain text.

The prompt is rendered as at inference, with the generation prompt. The answer is the rest of the rendered whole chat
behind that; if the whole chat does not begin with the prompt, :func:`cut_answer` finds the answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, TemplateSyntaxError
from lightning.pytorch.utilities import rank_zero_warn

from lit_align.policy.tool_calls import with_arguments
from lit_align.records import Candidate, Message, Prompt, answer_turn, prompt_turns, template_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "lit align probe"
QUESTION: Prompt = (Message("user", PROBE),)
"""A plain question of the user."""
_OPENED = re.compile(r"<(\w+)>$")
_CLOSED = re.compile(r"</\w+>$")


class ChatRefused(ValueError):
    """A chat that the template refuses to write, or writes wrongly.

    Args:
        reason: a short name by which skipped rows are counted.
        why: the message: what was expected and what came.
    """

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class WrittenAnswer:
    """An assistant's turn as it is written behind the prompt.

    Args:
        text: the whole text behind the prompt.
        start: index in `text` at which the turn's own content begins.
        end: index behind the content; the template itself writes the text from there on.
    """

    text: str
    start: int
    end: int


class PlainText:
    """Takes the place of a template if a tokenizer has none, and leaves texts as they are."""

    source = ""
    head = ""
    tail = ""
    between_turns = ""
    user_turn = ""

    def write_prompt(self, prompt: Prompt) -> str:
        """The text of the user's turn.

        Raises:
            ValueError: the prompt has other turns.
        """
        if len(prompt) != 1 or prompt[0].role != "user":
            roles = ", ".join(message.role for message in prompt)
            raise ValueError(
                f"the tokenizer has no chat template, so a prompt must be one turn of the user, got turns of {roles}. "
                "Set the policy's `chat_template` to a Jinja file or a template, or take a model that has one."
            )
        return prompt[0].content

    def write_answer(self, prompt: Prompt, written_prompt: str, candidate: Candidate) -> WrittenAnswer:
        """The candidate's text."""
        return WrittenAnswer(candidate.text, 0, len(candidate.text))


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: a tokenizer with a chat template.

    Attributes:
        source: the template's own text.
        tail: the text that it writes behind the last answer of a chat.
        between_turns: the text that it writes between an answer and the user's next turn.
        head: the text that it writes between a prompt and an answer's content.
        user_turn: a chat of a single turn of the user, with the generation prompt.

    Raises:
        ValueError: the template does not parse.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.source = str(tokenizer.chat_template)
        self._warned = False
        self._takes_text = self._takes_parts = True
        as_text = self._probe(PROBE)
        as_parts = self._probe([{"type": "text", "text": PROBE}])
        self._takes_parts = PROBE in as_parts and not re.search(r"""["']type["']""", as_parts)
        self._takes_text = PROBE in as_text or not self._takes_parts
        self.user_turn = as_text if self._takes_text else as_parts
        self.tail = self._render_tail()
        self.between_turns = self._render_tail(*QUESTION).partition(PROBE)[0]
        self.head = self._render_head()

    def write_prompt(self, prompt: Prompt) -> str:
        """Writes the prompt as at inference, generation prompt included.

        Raises:
            ChatRefused: the template refuses the prompt, fails, or leaves its last turn out.
        """
        text = self._render(prompt_turns(prompt), template_arguments(prompt), add_generation_prompt=True)
        if prompt[-1].role == "user" and not holds(text, prompt[-1].content):
            turn = _short(prompt[-1].content)
            why = f"expected the model's chat template to write the last turn {turn}, it wrote {_short(text)}"
            raise ChatRefused("template_drops_turn", why)
        return text

    def write_whole(self, prompt: Prompt, candidate: Candidate) -> str:
        """Writes the chat with its answer as the template does, without a generation prompt.

        Raises:
            ChatRefused: the template refuses the chat, or fails.
        """
        return self._render([*prompt_turns(prompt), answer_turn(candidate)], template_arguments(prompt))

    def write_answer(self, prompt: Prompt, written_prompt: str, candidate: Candidate) -> WrittenAnswer:
        """Writes the answer as it follows the prompt in the whole chat.

        Raises:
            ChatRefused: the template refuses the chat, fails, or does not write the answer.
        """
        turn = answer_turn(candidate)
        whole = self.write_whole(prompt, candidate)
        text = cut_answer(written_prompt, whole, turn)
        if not whole.startswith(written_prompt):
            self._warn_of_difference(written_prompt, whole, text)
        if not text.strip():
            why = f"expected the chat template to write the answer {_short(candidate.text)}, it wrote {_short(whole)}"
            raise ChatRefused("template_drops_turn", why)
        return self._find_content(text, turn)

    def _render(self, turns: Sequence[dict[str, Any]], arguments: Mapping[str, Any], **more: Any) -> str:
        chat = [self._adapt_content(turn) for turn in turns]
        try:
            try:
                text = self._apply(with_arguments(chat, as_text=False), arguments, **more)
            except TypeError:  # a template that puts a tool call's arguments together as text
                text = self._apply(with_arguments(chat, as_text=True), arguments, **more)
        except TemplateSyntaxError as error:
            raise ValueError(
                f"the chat template does not parse: {error.message} in line {error.lineno}. Set the policy's "
                "`chat_template` to a Jinja file or a template that does."
            ) from error
        except Exception as error:  # a template's code may raise anything
            kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
            why = f"expected a chat that the model's chat template takes, it refused: {kind}{error}"
            raise ChatRefused("template_refused", why) from error
        if not text.strip():
            why = "expected the model's chat template to write the chat, it wrote nothing"
            raise ChatRefused("template_empty", why)
        return text

    def _apply(self, chat: list[dict[str, Any]], arguments: Mapping[str, Any], **more: Any) -> str:
        return str(self.tokenizer.apply_chat_template(chat, **{**arguments, **more, "tokenize": False}))

    def _adapt_content(self, turn: dict[str, Any]) -> dict[str, Any]:
        """Brings a turn's content into the form that the template takes: text, or a list of parts."""
        content = turn.get("content")
        if isinstance(content, list) and not self._takes_parts:
            return {**turn, "content": content_text(turn)}
        if isinstance(content, str) and not self._takes_text:
            return {**turn, "content": [{"type": "text", "text": content}]}
        return turn

    def _probe(self, content: Any) -> str:
        try:
            return self._render([{"role": "user", "content": content}], {}, add_generation_prompt=True)
        except ChatRefused:
            return ""

    def _render_tail(self, *more: Message) -> str:
        chat = prompt_turns((Message("user", "hello"), Message("assistant", PROBE), *more))
        try:
            return self._render(chat, {}).partition(PROBE)[2]
        except ChatRefused:
            return ""

    def _render_head(self) -> str:
        answer = Candidate(PROBE)
        try:
            prompt = self.write_prompt(QUESTION)
            whole = self.write_whole(QUESTION, answer)
            return cut_answer(prompt, whole, answer_turn(answer)).partition(PROBE)[0]
        except ChatRefused:
            return ""

    def _find_content(self, text: str, turn: Mapping[str, Any]) -> WrittenAnswer:
        body = text.removesuffix(self.tail)
        content = content_text(turn)
        for part in (content, content.strip(), content.rpartition("</think>")[2].strip()):
            start = body.rfind(part)
            if part and start >= 0:
                return WrittenAnswer(text, start, start + len(part))
        return WrittenAnswer(text, 0, len(body.rstrip()))

    def _warn_of_difference(self, prompt: str, whole: str, text: str) -> None:
        if not self._warned:
            self._warned = True
            rank_zero_warn(
                "the chat template does not write the chat with its answer as it writes the prompt for an answer, so "
                f"prompt and answer together are not the template's own text. The prompt ends with {prompt[-60:]!r}, "
                f"the whole chat with {whole[-120:]!r}; the text trained behind the prompt is {_short(text)}"
            )


def cut_answer(prompt: str, whole: str, turn: Mapping[str, Any]) -> str:
    """The answer in a whole chat: the text behind the prompt, if the chat begins with the prompt.

    If it does not, these cases are tried in turn. Whitespace at the prompt's end is not written twice. A block that
    the prompt opens, such as `<think>`, is closed: with the thought that the answer holds, or empty. Otherwise the
    answer begins with its content; behind a block that the prompt closes, the thought is left out.

    Args:
        prompt: the written prompt, with the generation prompt.
        whole: the written chat with the answer.
        turn: the assistant's turn.

    Raises:
        ChatRefused: the whole chat does not hold the answer.
    """
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    header = prompt.rstrip()
    if whole.startswith(header):
        return whole[len(header) :].lstrip()
    opened = _OPENED.search(header)
    if opened is not None and whole.startswith(header[: opened.start()]):
        return _close_block(opened[1], prompt[len(header) :], whole[opened.start() :], turn)
    content = content_text(turn)
    if _CLOSED.search(header):  # the prompt allows no thought
        content = content.rpartition("</think>")[2]
    start = whole.rfind(content := content.strip())
    if start < 0:
        why = f"expected the chat template to write the answer {_short(content)}, it wrote {_short(whole[-120:])}"
        raise ChatRefused("template_drops_turn", why)
    return whole[start:]


def _close_block(tag: str, blank: str, written: str, turn: Mapping[str, Any]) -> str:
    """The answer behind a block that the prompt opens.

    Args:
        tag: the block's name.
        blank: the whitespace between its opening tag and the answer.
        written: the text that the whole chat has in place of the opened block and the answer.
        turn: the assistant's turn.
    """
    close = f"</{tag}>"
    content = content_text(turn)
    if written.lstrip().startswith(close):
        return written.lstrip()
    if close in content:  # the answer brings its thought, which the template took out
        visible = content.rpartition(close)[2].strip()
        tail = written.rpartition(visible)[2] if visible else written
        return content.lstrip().removeprefix(f"<{tag}>").removeprefix(blank) + tail
    return f"{turn.get('reasoning_content') or ''}{blank}{close}{2 * blank}{written}"


def content_text(turn: Mapping[str, Any]) -> str:
    """The content of a turn as text; a list of parts is joined as templates do."""
    content = turn.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def holds(text: str, content: str) -> bool:
    """Whether a rendered chat has this content, regardless of whitespace."""
    return content.strip() in text or "".join(content.split()) in "".join(text.split())


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:80]} ... {text[-36:]}")
