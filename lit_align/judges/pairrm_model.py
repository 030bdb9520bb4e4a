"""PairRM's network (Jiang et al. 2023, arXiv 2306.02561) under the names of its published weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import DebertaV2Config, DebertaV2Model
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2PreTrainedModel


class PairRMNetwork(DebertaV2PreTrainedModel):
    """A DeBERTa encoder that reads prompt and both candidates at once, and a head on the states of three markers.

    Args:
        config: the encoder's config, with the number of the head's outputs as `n_tasks`.
    """

    def __init__(self, config: DebertaV2Config) -> None:
        super().__init__(config)
        self.pretrained_model = DebertaV2Model(config)
        hidden = config.hidden_size
        drop_out = getattr(config, "drop_out", 0.0)
        # In the published weights the two linear layers have the numbers 1 and 4.
        self.head_layer = nn.Sequential(
            nn.Dropout(drop_out), nn.Linear(2 * hidden, hidden), nn.Tanh(), nn.Dropout(drop_out),
            nn.Linear(hidden, config.n_tasks),
        )  # fmt: skip
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, markers: torch.Tensor) -> Any:
        """Computes the logit of "the first candidate is better": [B] float32.

        Args:
            input_ids: [B, T] the tokens of prompt and both candidates.
            attention_mask: [B, T] 1 for real tokens, 0 for padding.
            markers: [B, 3] positions of the markers of the prompt, the first and the second candidate.
        """
        states = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        rows = torch.arange(len(states), device=states.device)[:, None]
        source, first, second = states[rows, markers].float().unbind(dim=1)
        first_score = self.head_layer(torch.cat([source, first], dim=-1))
        second_score = self.head_layer(torch.cat([source, second], dim=-1))
        return (first_score - second_score).mean(dim=-1)
