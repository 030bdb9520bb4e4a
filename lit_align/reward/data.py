"""The data of a reward model: the pairs of an alignment run, tokenised as the judge will read them."""

from __future__ import annotations

from lit_align.data.datamodule import AlignmentDataModule
from lit_align.data.encoder import Encoder
from lit_align.reward.encode import RewardEncoder


class RewardDataModule(AlignmentDataModule):
    """As :class:`lit_align.data.AlignmentDataModule`, with the same arguments and the same rows.

    Pairs are tokenised by :class:`RewardEncoder`: prompt and answer are what the judge will read. Nothing is sampled
    and no reference is kept.
    """

    @property
    def encoder(self) -> Encoder:
        """What tokenises the pairs."""
        return self._encoder

    @encoder.setter
    def encoder(self, plain: Encoder) -> None:
        self._encoder = RewardEncoder(
            plain.tokenizer, plain.max_prompt_tokens, plain.max_completion_tokens, plain.too_long
        )
