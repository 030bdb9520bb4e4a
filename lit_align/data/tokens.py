"""Texts to token ids, and the tokens that end an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lit_align.policy.chat_template import ChatTemplate, PlainText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LEADS = ("\n", "|", ".")  # texts to put before another that must not be split as the start of a text


class TextTokenizer:
    """Tokenises texts, at the start of a row or behind other tokens.

    Some tokenizers (SentencePiece's) put a space before a text that stands by itself. A model that writes on
    behind a prompt does not, so an answer is tokenised behind a short text, whose tokens are taken away again.

    Args:
        tokenizer: adds no special tokens here.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        alone = {text: self.encode_at_start([text])[0] for text in ("a", *_LEADS)}
        joined = {lead: self.encode_at_start([lead + "a"])[0] for lead in _LEADS}
        adds_space = all(joined[lead] != alone[lead] + alone["a"] for lead in _LEADS)
        self._leads = [(lead, alone[lead]) for lead in _LEADS] if adds_space else []

    def encode_at_start(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text at the start of a row."""
        if not texts:
            return []
        ids: Any = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return list(map(list, ids))

    def encode_behind(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text behind others."""
        open_texts = list(dict.fromkeys(texts))
        ids: dict[str, list[int]] = {}
        for lead, lead_ids in self._leads:
            size = len(lead_ids)
            joined = self.encode_at_start([lead + text for text in open_texts])
            ids.update({t: j[size:] for t, j in zip(open_texts, joined, strict=True) if j[:size] == lead_ids})
            open_texts = [text for text in open_texts if text not in ids]
        ids.update(zip(open_texts, self.encode_at_start(open_texts), strict=True))
        return [ids[text] for text in texts]


class StopTokens:
    """The tokens that end an answer.

    Args:
        tokenizer: its end-of-sequence token is one of them.
        template: the end-of-turn token comes from it.
        tokens: tokenises.
        model_stops: the end-of-sequence ids of the model's generation config.

    Attributes:
        end_id: the end of an answer whose end the template does not write.
        ids: all of them, `end_id` first.

    Raises:
        ValueError: there is none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: ChatTemplate | PlainText,
        tokens: TextTokenizer,
        model_stops: Sequence[int] = (),
    ) -> None:
        special = _special_ids(tokenizer)
        known_stops = [token for token in model_stops if token in special]
        eos = [int(token) for token in (tokenizer.eos_token_id, *known_stops) if token is not None]
        final = _first_specials(tokens.encode_behind([template.tail])[0], special)
        between = _first_specials(tokens.encode_behind([template.between_turns])[0], special)
        self.end_id = _end_of_turn(final, between, eos)
        self.ids = tuple(dict.fromkeys([self.end_id, *eos]))
        written = [re.escape(str(tokenizer.convert_ids_to_tokens(i))) for i in self.ids]
        self.pattern = re.compile("|".join(sorted(written, key=len, reverse=True)))

    def cut(self, text: str, start: int, end: int) -> str:
        """The trained part of an answer: up to the first stop, else without the blanks that the template ends with.

        Args:
            text: the answer and what the template writes behind it.
            start: where the answer's own content begins; a stop before it belongs to an earlier turn.
            end: where the answer's own content ends.
        """
        stop = self.pattern.search(text, start)
        return text[: stop.end()] if stop else text[: max(end, len(text.rstrip()))]


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added = tokenizer.added_tokens_decoder  # some tokenizers also add runs of white space here
    return {*tokenizer.all_special_ids, *(id_ for id_, token in added.items() if str(token).strip())}


def _first_specials(ids: Sequence[int], special: set[int]) -> list[int]:
    """The first run of special tokens."""
    start = next((n for n, token in enumerate(ids) if token in special), len(ids))
    end = next((n for n, token in enumerate(ids[start:], start) if token not in special), len(ids))
    return list(ids[start:end])


def _end_of_turn(final: Sequence[int], between: Sequence[int], eos: Sequence[int]) -> int:
    """The token that ends a turn.

    Of several behind an answer it is an end-of-sequence token that is also written within a chat, else the first.
    Where the template writes none behind the last answer (GLM-4), it is one that begins the next turn and that the
    model is known to stop at.
    """
    if final:
        return next((token for token in final if token in eos and token in between), final[0])
    end = next((token for token in between[:1] if token in eos), next(iter(eos), None))
    if end is None:
        raise ValueError(
            "expected a tokenizer with an end-of-sequence token or a chat template that ends a turn with a special "
            "token, got neither: without one the policy cannot learn to stop. Set the policy's `chat_template`."
        )
    return end
