"""How a sequence classifier reads an answer, both when it is trained and when it judges."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from lit_align.policy.chat_template import ChatTemplate
from lit_align.records import Candidate, Prompt, prompt_text

Inputs = dict[str, list[int]]
"""The model's inputs for one answer, each a list of T numbers."""

_INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")


def encode_answer(tokenizer: Any, prompt: Prompt, answer: Candidate, limit: int | None = None) -> tuple[Inputs, int]:
    """Encodes an answer with its prompt: through the chat template, or as a text pair if there is none.

    Args:
        tokenizer: that of the classifier; with `truncation_side="left"` if a pair may be cut.
        prompt: the chat so far.
        answer: the candidate that is the assistant's turn.
        limit: the most tokens; a longer text is cut at its start. None cuts nothing.

    Returns:
        The model's inputs, and the number of tokens before the cut.

    Raises:
        ChatRefused: if the chat template does not write the chat.
    """
    if tokenizer.chat_template:
        written = _template(tokenizer, str(tokenizer.chat_template)).write_whole(prompt, answer)
        encoded = tokenizer(written, add_special_tokens=False, verbose=False)
    else:
        encoded = tokenizer(prompt_text(prompt), answer.text, verbose=False)
    tokens = len(encoded["input_ids"])
    if limit is None or tokens <= limit:
        return {name: list(encoded[name]) for name in _INPUT_NAMES if name in encoded}, tokens
    if not tokenizer.chat_template:  # the tokenizer keeps the special tokens
        encoded = tokenizer(prompt_text(prompt), answer.text, truncation=True, max_length=limit)
    return {name: list(encoded[name])[-limit:] for name in _INPUT_NAMES if name in encoded}, tokens


def has_segments(tokenizer: Any) -> bool:
    """Whether `token_type_ids` mark prompt and answer, as in BERT's text pairs."""
    return not tokenizer.chat_template and "token_type_ids" in tokenizer.model_input_names


def padding_of(config: Any) -> int | None:
    """The padding id in a classifier's config, whatever its tokenizer says; None if the config has no valid one."""
    text = config.get_text_config()
    pad_id = getattr(text, "pad_token_id", None)
    return pad_id if pad_id is not None and 0 <= pad_id < text.vocab_size else None


@lru_cache(maxsize=8)
def _template(tokenizer: Any, source: str) -> ChatTemplate:  # a template that is set anew is another
    return ChatTemplate(tokenizer)
