"""Records to token ids: prompt and completion apart, so that the boundary between them is exact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from lit_align.batch import TokenizedPair
from lit_align.data.chat_check import ChatCheck
from lit_align.data.tokens import StopTokens, TextTokenizer
from lit_align.policy.chat_template import QUESTION, ChatRefused, ChatTemplate, PlainText
from lit_align.records import Candidate, FinishReason, Origin, PreferencePair, Prompt
from lit_align.rows.loading import Record
from lit_align.rows.reading import BadRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TooLong = Literal["drop", "cut_prompt"]


class Encoder:
    """Tokenises prompts and answers for one tokenizer: the one place that makes the tokens of a chat.

    A prompt is what the model gets at inference, an answer what it would say there: the text that the chat template
    writes behind the prompt, up to the token that ends the turn.

    Args:
        tokenizer: with a chat template, chats are written by it; without one a prompt is plain text.
        max_prompt_tokens: the longest prompt, template included; None for no limit.
        max_completion_tokens: the longest completion, end-of-turn token included; None for no limit. A longer
            completion drops its pair: it is never cut.
        too_long: what happens to a longer prompt: its pair is dropped, or its left end is cut off (a
            beginning-of-sequence token stays).
        model_stops: the end-of-sequence ids of the model's generation config.

    Attributes:
        template: writes chats as text.
        end_id: the token that ends an answer whose end the template does not write.
        stop_ids: all tokens at which a sampled answer ends.
        pad_id: what fills up a row.

    Raises:
        ValueError: for settings out of range, a template that does not parse, or if no token ends an answer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_prompt_tokens: int | None = None,
        max_completion_tokens: int | None = None,
        too_long: TooLong = "drop",
        model_stops: Sequence[int] = (),
    ) -> None:
        for key, limit in (("max_prompt_tokens", max_prompt_tokens), ("max_completion_tokens", max_completion_tokens)):
            if limit is not None and limit < 2:
                raise ValueError(f"expected {key} to be at least 2 tokens or null, got {limit}")
        if too_long not in ("drop", "cut_prompt"):
            raise ValueError(f"expected too_long to be 'drop' or 'cut_prompt', got {too_long!r}")
        self.tokenizer = tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self.max_completion_tokens = max_completion_tokens
        self.too_long = too_long
        self.template = PlainText() if tokenizer.chat_template is None else ChatTemplate(tokenizer)
        self._tokens = TextTokenizer(tokenizer)
        self._stops = StopTokens(tokenizer, self.template, self._tokens, model_stops)
        self.end_id = self._stops.end_id
        self.stop_ids = self._stops.ids
        pad = tokenizer.pad_token_id
        self.pad_id = int(pad) if pad is not None else self.stop_ids[-1]
        bos = tokenizer.bos_token_id
        begins = list(tokenizer("a")["input_ids"])[:1]
        self._writes_bos = tokenizer.chat_template is None and bos is not None and begins == [bos]  # as it was trained
        self._chat_check = ChatCheck(tokenizer, self.template)
        self._ahead = _Ahead({}, {}, {})

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """The prompt's ids, cut from the left if `too_long` is "cut_prompt".

        Raises:
            ValueError: if the tokenizer has no chat template and the prompt is more than one turn of the user.
            BadRow: if the chat template refuses the prompt.
        """
        return self._cut(self._prompt_ids(prompt))

    def encode_completion(self, candidate: Candidate, prompt: Prompt = QUESTION) -> list[int]:
        """The ids as they were sampled, else those of what the template writes, to the end of the turn.

        An answer that was cut gets no end.

        Args:
            candidate: the answer.
            prompt: what it answers. Templates write most answers alike behind any prompt.

        Raises:
            BadRow: if the chat template refuses the chat.
        """
        if candidate.token_ids is not None:
            return list(candidate.token_ids)
        ids = self._ahead.answers.get((prompt, _as_text(candidate)))
        if ids is None:
            ids = self._tokens.encode_behind([self._written_answer(prompt, candidate, self.write_prompt(prompt))])[0]
        lacks_end = candidate.finish_reason is FinishReason.STOP and (not ids or ids[-1] not in self.stop_ids)
        return [*ids, self.end_id] if lacks_end else list(ids)

    def as_in_data(self, sampled: Candidate) -> Candidate:
        """A sampled answer with the text that a row would have for it, which judges compare with those of rows.

        What the template writes before an answer's own text, such as a channel's header or a blank, is no part of it.
        """
        head = self.template.head
        if sampled.token_ids is None or not head:
            return sampled
        if not head.strip():
            return replace(sampled, text=sampled.text.removeprefix(head))
        ids = [token for token in sampled.token_ids if token not in self.stop_ids]
        text = str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        return replace(sampled, text=text.rpartition(head)[2]) if head in text else sampled

    def write_prompt(self, prompt: Prompt) -> str:
        """The prompt as text.

        Raises:
            ValueError: if the tokenizer has no chat template and the prompt is more than one turn of the user.
            BadRow: if the chat template refuses the prompt.
        """
        text = self._ahead.written.get(prompt)
        if text is None:
            with bad_row("a prompt"):
                text = self.template.write_prompt(prompt)
        return text

    def check_record(self, record: Record, counts: Counter[str]) -> None:
        """Counts what the chat template silently makes of a row, and warns once: :class:`ChatCheck`.

        Args:
            record: the row's.
            counts: where it is counted.

        Raises:
            BadRow: if the chat template refuses the prompt.
        """
        self._chat_check.check(record, self.write_prompt(record.prompt), counts)

    def fits(self, prompt: Prompt) -> bool:
        """Whether the prompt can be used: within the limit, or to be cut."""
        return (
            self.too_long == "cut_prompt"
            or self.max_prompt_tokens is None
            or (len(self._prompt_ids(prompt)) <= self.max_prompt_tokens)
        )

    def encode_pair(self, pair: PreferencePair, counts: Counter[str] | None = None) -> TokenizedPair | str:
        """The pair's ids, or the reason for which the pair is dropped.

        Args:
            pair: the pair.
            counts: `prompt_cut` is counted here.

        Raises:
            BadRow: if the chat template refuses the chat.
        """
        prompt = self._prompt_ids(pair.prompt)
        limit = self.max_prompt_tokens
        if limit is not None and len(prompt) > limit:
            if self.too_long == "drop":
                return "prompt_too_long"
            if counts is not None:
                counts["prompt_cut"] += 1
        chosen, rejected = (self.encode_completion(answer, pair.prompt) for answer in (pair.chosen, pair.rejected))
        target = None if pair.target is None else self.encode_completion(Candidate(pair.target), pair.prompt)
        longest = max(len(chosen), len(rejected), len(target or ()))
        if self.max_completion_tokens is not None and longest > self.max_completion_tokens:
            return "completion_too_long"
        if chosen == rejected:
            return "equal_completions"
        return TokenizedPair(
            prompt=_array(self._cut(prompt)),
            chosen=_array(chosen),
            rejected=_array(rejected),
            margin=float("nan") if pair.margin is None else pair.margin,
            on_policy=pair.origin is Origin.ON_POLICY,
            target=None if target is None else _array(target),
        )

    def encode_pairs(self, pairs: Sequence[PreferencePair], counts: Counter[str]) -> list[TokenizedPair]:
        """The tokenised pairs; each that is dropped is counted under its reason."""
        kept = []
        for pair in pairs:
            encoded = self.encode_pair(pair, counts)
            if isinstance(encoded, str):
                counts[encoded] += 1
            else:
                kept.append(encoded)
        return kept

    def tokenise_ahead(self, pairs: Sequence[PreferencePair]) -> None:
        """Tokenises the texts of many pairs in one go, which is faster; kept until the next call."""
        prompts: dict[Prompt, str] = {}
        answers: dict[tuple[Prompt, Candidate], str] = {}
        for pair in pairs:
            with suppress(BadRow):  # raised again when this pair's turn comes
                written = prompts.get(pair.prompt) or self.write_prompt(pair.prompt)
                prompts[pair.prompt] = written
                for candidate in _static_answers(pair):
                    answers[pair.prompt, candidate] = self._written_answer(pair.prompt, candidate, written)
        prompt_ids = [self._with_bos(ids) for ids in self._tokens.encode_at_start(list(prompts.values()))]
        answer_ids = self._tokens.encode_behind(list(answers.values()))
        self._ahead = _Ahead(
            prompts, dict(zip(prompts, prompt_ids, strict=True)), dict(zip(answers, answer_ids, strict=True))
        )

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        ids = self._ahead.prompts.get(prompt)
        return ids if ids is not None else self._with_bos(self._tokens.encode_at_start([self.write_prompt(prompt)])[0])

    def _with_bos(self, ids: list[int]) -> list[int]:
        """The ids of a prompt with one beginning-of-sequence token, if the tokenizer writes one."""
        bos = self.tokenizer.bos_token_id
        if bos is None or ids[:1] == [bos]:
            return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids
        return [bos, *ids] if self._writes_bos else ids

    def _written_answer(self, prompt: Prompt, candidate: Candidate, written_prompt: str) -> str:
        with bad_row("an answer"):
            answer = self.template.write_answer(prompt, written_prompt, candidate)
        if candidate.finish_reason is FinishReason.LENGTH:
            return answer.text[: answer.end]
        return self._stops.cut(answer.text, answer.start, answer.end)

    def _cut(self, ids: list[int]) -> list[int]:
        limit = self.max_prompt_tokens
        if self.too_long == "drop" or limit is None or len(ids) <= limit:
            return ids
        keeps_bos = self.tokenizer.bos_token_id is not None and ids[0] == self.tokenizer.bos_token_id
        return [ids[0], *ids[len(ids) - limit + 1 :]] if keeps_bos else ids[len(ids) - limit :]


@contextmanager
def bad_row(where: str) -> Iterator[None]:
    """Makes a bad row of a chat that the template does not write.

    Args:
        where: the part of the row; the caller knows the row's place and adds it.
    """
    try:
        yield
    except ChatRefused as error:
        raise BadRow(where, error.reason, str(error)) from error


@dataclass(frozen=True)
class _Ahead:
    """Prompts as text and as ids, and the ids of answers, that were tokenised ahead."""

    written: dict[Prompt, str]
    prompts: dict[Prompt, list[int]]
    answers: dict[tuple[Prompt, Candidate], list[int]]


def _static_answers(pair: PreferencePair) -> Iterator[Candidate]:
    """The answers of a pair that are text, without their scores."""
    for candidate in (pair.chosen, pair.rejected):
        if candidate.token_ids is None:
            yield _as_text(candidate)
    if pair.target is not None:
        yield Candidate(pair.target)


def _as_text(candidate: Candidate) -> Candidate:
    return Candidate(candidate.text, finish_reason=candidate.finish_reason, turn=candidate.turn)


def _array(ids: Sequence[int]) -> np.ndarray:
    return np.asarray(ids, dtype=np.int32)
