"""The data of a reward model: the pairs of an alignment run, tokenised as the judge will read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_align.data.datamodule import AlignmentDataModule
from lit_align.reward.encode import RewardEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RewardDataModule(AlignmentDataModule):
    """As :class:`lit_align.data.AlignmentDataModule`, with the same arguments and the same rows.

    Pairs are tokenised by :class:`RewardEncoder`: prompt and answer are what the judge will read. Nothing is sampled
    and no reference is kept.
    """

    def make_encoder(self, tokenizer: PreTrainedTokenizerBase) -> RewardEncoder:
        """The encoder, which tokenises the pairs."""
        return RewardEncoder(tokenizer, self.max_prompt_tokens, self.max_completion_tokens, self.too_long)
