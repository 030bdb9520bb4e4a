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
        config: the encoder's, with `n_tasks`: how many outputs the head has.
    """

    def __init__(self, config: DebertaV2Config) -> None:
        super().__init__(config)
        self.pretrained_model = DebertaV2Model(config)
        hidden, drop_out = config.hidden_size, getattr(config, "drop_out", 0.0)
        # The two linear layers are number 1 and 4 in the published weights.
        self.head_layer = nn.Sequential(
            nn.Dropout(drop_out), nn.Linear(2 * hidden, hidden), nn.Tanh(), nn.Dropout(drop_out),
            nn.Linear(hidden, config.n_tasks),
        )  # fmt: skip
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, markers: torch.Tensor) -> Any:
        """The logit of "the first candidate is better", [B] float32.

        Args:
            input_ids: [B, T].
            attention_mask: [B, T].
            markers: [B, 3], where the markers of the prompt, the first and the second candidate stand.
        """
        states = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        rows = torch.arange(len(states), device=states.device)[:, None]
        source, first, second = states[rows, markers].float().unbind(dim=1)
        left = self.head_layer(torch.cat([source, first], dim=-1))
        right = self.head_layer(torch.cat([source, second], dim=-1))
        return (left - right).mean(dim=-1)
