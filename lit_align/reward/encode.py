"""Pairs as a reward model reads them: the token ids that the judge will score, cut into prompt and answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_align.batch import TokenizedPair
from lit_align.data.encoder import Encoder, bad_row
from lit_align.judges.inputs import Inputs, encode_answer, has_segments
from lit_align.records import Candidate, Origin, PreferencePair, Prompt, prompt_text


class RewardEncoder(Encoder):
    """Tokenises pairs for a reward model.

    `prompt + chosen` and `prompt + rejected` are exactly what :class:`lit_align.judges.RewardModelJudge` gives the
    model for these answers. An answer's tokens begin where the two texts part, and at the latest after the prompt.

    Args:
        tokenizer: the reward model's; its `model_max_length` is the longest row.
        max_prompt_tokens: see :class:`lit_align.data.Encoder`.
        max_completion_tokens: see :class:`lit_align.data.Encoder`.
        too_long: see :class:`lit_align.data.Encoder`.
    """

    def encode_pair(self, pair: PreferencePair, counts: Counter[str] | None = None) -> TokenizedPair | str:
        rows = [self._row(pair.prompt, answer) for answer in (pair.chosen, pair.rejected)]
        if rows[0] == rows[1]:
            return "equal_completions"
        start = self._start_of_answers(pair.prompt, rows)
        prompt = rows[0]["input_ids"][:start]
        chosen, rejected = (row["input_ids"][start:] for row in rows)
        limit = self.max_prompt_tokens
        if limit is not None and start > limit:
            if self.too_long == "drop":
                return "prompt_too_long"
            if counts is not None:
                counts["prompt_cut"] += 1
            prompt = self._cut(prompt)
        longest = max(len(chosen), len(rejected))
        if self.max_completion_tokens is not None and longest > self.max_completion_tokens:
            return "completion_too_long"
        if len(prompt) + longest > self.tokenizer.model_max_length:
            return "longer_than_the_model_reads"
        return TokenizedPair(
            prompt=np.asarray(prompt, dtype=np.int32),
            chosen=np.asarray(chosen, dtype=np.int32),
            rejected=np.asarray(rejected, dtype=np.int32),
            margin=float("nan") if pair.margin is None else pair.margin,
            on_policy=pair.origin is Origin.ON_POLICY,
        )

    def tokenise_ahead(self, pairs: Sequence[PreferencePair]) -> None:
        """Nothing: a chat is tokenised as a whole."""

    def write_prompt(self, prompt: Prompt) -> str:
        """The prompt as text; without a chat template any chat is one."""
        return prompt_text(prompt) if self.tokenizer.chat_template is None else super().write_prompt(prompt)

    def _row(self, prompt: Prompt, answer: Candidate) -> Inputs:
        with bad_row("a prompt"):
            return encode_answer(self.tokenizer, prompt, answer)[0]

    def _start_of_answers(self, prompt: Prompt, rows: Sequence[Inputs]) -> int:
        if has_segments(self.tokenizer):
            return rows[0]["token_type_ids"].index(1)
        first, second = (np.asarray(row["input_ids"]) for row in rows)
        size = min(len(first), len(second))
        differences = np.flatnonzero(first[:size] != second[:size])
        return min(int(differences[0]) if len(differences) else size, len(self._prompt_ids(prompt)))

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if self.tokenizer.chat_template is not None:
            return super()._prompt_ids(prompt)
        ids: Any = self.tokenizer(prompt_text(prompt), verbose=False)["input_ids"]
        return list(ids)
