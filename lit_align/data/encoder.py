"""Records to token ids: prompt and completion apart, so that the boundary between them is exact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jinja2 import TemplateError

from lit_align.data.reading import BadRow
from lit_align.records import Candidate, FinishReason, Origin, PreferencePair, Prompt, prompt_turns, template_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TooLong = Literal["drop", "cut_prompt"]
_PROBE = "lit align probe"


@dataclass(frozen=True, slots=True, eq=False)
class PairReference:
    """What the reference gave to a pair when it was sampled.

    Args:
        chosen: [C] float32 log-probs of the chosen completion's tokens, in nats.
        rejected: [R] float32, of the rejected one's.
        version: how often the reference had been refreshed by then; a later one gives other values.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    version: int


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedPair:
    """A pair as int32 arrays of token ids.

    Args:
        prompt: [P] ids, chat template and generation prompt included.
        chosen: [C] ids, end-of-turn token included where the completion ended.
        rejected: [R] ids, likewise.
        margin: chosen minus rejected score; NaN where unknown.
        on_policy: whether the pair was sampled from the policy.
        target: ids of SLiC-HF's regulariser target, where the row has one.
        reference: of an on-policy pair, its reference log-probs, where the loss has a reference.
    """

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    margin: float
    on_policy: bool
    target: np.ndarray | None = None
    reference: PairReference | None = None


class Encoder:
    """Tokenises prompts and completions for one tokenizer.

    Args:
        tokenizer: with a chat template, prompts are written by it; without one a prompt is plain text.
        max_prompt_tokens: the longest prompt, template included; None for no limit.
        max_completion_tokens: the longest completion, end-of-turn token included; None for no limit. A longer
            completion drops its pair: it is never cut.
        too_long: what happens to a longer prompt: its pair is dropped, or its left end is cut off (a
            beginning-of-sequence token stays).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_prompt_tokens: int | None = None,
        max_completion_tokens: int | None = None,
        too_long: TooLong = "drop",
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
        self._known: dict[str, list[int]] = {}
        self._known_prompts: dict[Prompt, list[int]] = {}
        bos, first = tokenizer.bos_token_id, list(tokenizer("a")["input_ids"])[:1]
        self._writes_bos = tokenizer.chat_template is None and bos is not None and first == [bos]  # as it was trained
        self.end_id = self._find_end_of_turn()
        eos = tokenizer.eos_token_id
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys([self.end_id] if eos is None else [self.end_id, int(eos)]))
        pad = tokenizer.pad_token_id
        self.pad_id = int(pad) if pad is not None else self.stop_ids[-1]

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """The prompt's ids, cut from the left where `cut_prompt` asks for it.

        Raises:
            ValueError: if the tokenizer has no chat template and the prompt is more than one turn of the user.
            BadRow: if the chat template refuses the prompt.
        """
        return self._cut(self._prompt_ids(prompt))

    def encode_completion(self, candidate: Candidate) -> list[int]:
        """The ids as they were sampled, else the text's, with the end-of-turn token where the completion ended."""
        if candidate.token_ids is not None:
            return list(candidate.token_ids)
        ids = self._plain_ids(candidate.text)
        ended = candidate.finish_reason is FinishReason.STOP and ids[-1:] != [self.end_id]
        return [*ids, self.end_id] if ended else ids

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
        """
        prompt = self._prompt_ids(pair.prompt)
        limit = self.max_prompt_tokens
        if limit is not None and len(prompt) > limit:
            if self.too_long == "drop":
                return "prompt_too_long"
            if counts is not None:
                counts["prompt_cut"] += 1
        chosen, rejected = self.encode_completion(pair.chosen), self.encode_completion(pair.rejected)
        target = None if pair.target is None else self.encode_completion(Candidate(pair.target))
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

    def tokenise_ahead(self, pairs: Sequence[PreferencePair]) -> None:
        """Tokenises the texts of many pairs in one go, which is faster; kept until the next call."""
        written: dict[Prompt, str] = {}
        for prompt in {pair.prompt for pair in pairs}:
            with suppress(BadRow):  # raised again when this pair's turn comes
                written[prompt] = self._written(prompt)
        texts = {c.text for pair in pairs for c in (pair.chosen, pair.rejected) if c.token_ids is None}
        texts |= {pair.target for pair in pairs if pair.target is not None} | set(written.values())
        self._known_prompts.clear()
        self._known = dict(zip(texts, self._tokenise(list(texts)), strict=True)) if texts else {}
        self._known_prompts.update({prompt: self._prompt_ids(prompt) for prompt in written})

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        known = self._known_prompts.get(prompt)
        if known is not None:
            return known
        ids = self._plain_ids(self._written(prompt))
        bos = self.tokenizer.bos_token_id
        if bos is None or ids[:1] == [bos]:
            return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids
        return [bos, *ids] if self._writes_bos else ids

    def _written(self, prompt: Prompt) -> str:
        """The prompt as text, generation prompt included."""
        if self.tokenizer.chat_template is not None:
            arguments = {**template_arguments(prompt), "add_generation_prompt": True, "tokenize": False}
            try:
                return str(self.tokenizer.apply_chat_template(prompt_turns(prompt), **arguments))
            except TemplateError as error:
                why = f"expected a chat that the model's chat template takes, it refused: {error}"
                raise BadRow("a prompt", "template_refused", why) from error
        if len(prompt) != 1 or prompt[0].role != "user":
            roles = ", ".join(message.role for message in prompt)
            raise ValueError(
                f"the tokenizer has no chat template, so a prompt must be one turn of the user, got turns of {roles}. "
                "Set the policy's `chat_template` to a Jinja file or a template, or take a model that has one."
            )
        return prompt[0].content

    def _plain_ids(self, text: str) -> list[int]:
        known = self._known.get(text)
        return list(known) if known is not None else list(self._tokenise([text])[0])

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        ids: Any = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _cut(self, ids: list[int]) -> list[int]:
        limit = self.max_prompt_tokens
        if self.too_long == "drop" or limit is None or len(ids) <= limit:
            return ids
        keeps_bos = self.tokenizer.bos_token_id is not None and ids[0] == self.tokenizer.bos_token_id
        return [ids[0], *ids[len(ids) - limit + 1 :]] if keeps_bos else ids[len(ids) - limit :]

    def _find_end_of_turn(self) -> int:
        """The first special token that the chat template writes after an assistant's turn, else EOS."""
        added = self.tokenizer.added_tokens_decoder  # some tokenizers also add runs of white space here
        special = {*self.tokenizer.all_special_ids, *(id_ for id_, token in added.items() if str(token).strip())}
        end = next((token for token in self._after_a_turn() if token in special), self.tokenizer.eos_token_id)
        if end is None:
            raise ValueError(
                "expected a tokenizer with an end-of-sequence token or a chat template that ends a turn with a special "
                "token, got neither: without one the policy cannot learn to stop. Set the policy's `chat_template`."
            )
        return int(end)

    def _after_a_turn(self) -> Sequence[int]:
        if self.tokenizer.chat_template is None:
            return ()
        messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": _PROBE}]
        written: Any = self.tokenizer.apply_chat_template(messages, tokenize=False)
        _, found, after = str(written).rpartition(_PROBE)
        return self._plain_ids(after) if found else ()


def _array(ids: Sequence[int]) -> np.ndarray:
    return np.asarray(ids, dtype=np.int32)
