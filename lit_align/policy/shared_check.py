"""Checks whether a model computes its prompts and completions correctly in shared rows.

Two things may go wrong. A layer may attend by itself, or have a window that the layout does not show: that is seen from
what its attention was called with, for rows of any length. Or numbers may differ for a reason that no call shows, such
as a head whose output is scaled: that is seen from a short row, computed in both ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_align.batch import Padded, lay_out_padded
from lit_align.policy.attention import Pass, base_model, unfit_attention
from lit_align.policy.exact_pass import computed_in
from lit_align.policy.head import LogitTransform, token_logps
from lit_align.policy.internals import experts_one_by_one
from lit_align.policy.logps import plain_rows
from lit_align.policy.modes import in_eval_mode
from lit_align.policy.outputs import as_input, output_head, outputs_of
from lit_align.policy.precision import HALF_PRECISIONS, dtype_of_products, embedding_weight
from lit_align.policy.sharding import in_lockstep
from lit_align.policy.shared_logps import hidden_states
from lit_align.ranks import largest

TOLERANCE = 1e-3
"""The largest difference of a token's log-prob, in nats, that two computations in float32 may have."""
HALF_TOLERANCE = 0.1
"""Mean nats per token by which two ways to the same log-probs differ at most in half precision."""
PROMPT = 64
COMPLETION = 32
"""The most tokens of a prompt and of a completion that are computed in both ways."""
FEW = 8
"""Tokens whose logits the check computes."""

_ERRORS = (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError, AssertionError)


class NotShared(Exception):
    """The model does not compute shared rows correctly; the message is the reason."""


@dataclass
class SharedRowsCheck:
    """The result of the check of one model.

    It does not depend on the rows: a resumed run, another rank and a part of a batch compute a row in the same way.

    Args:
        accepted: whether the model takes shared rows; None before the check.
    """

    accepted: bool | None = None

    def takes(self, model: nn.Module, prompt: Padded, completions: Sequence[Padded]) -> bool:
        """Whether the model takes shared rows. It is checked with the longest of the first ones."""
        if self.accepted is None:
            try:
                _demand_equal(model, *_short(prompt, completions))
                self.accepted = True
            except torch.OutOfMemoryError:
                raise
            except NotShared as reason:
                self._refuse(model, str(reason))
            except _ERRORS as error:
                self._refuse(model, f"it raised {type(error).__name__}: {error}")
        return self.accepted is True

    def _refuse(self, model: nn.Module, why: str) -> None:
        self.accepted = False
        rank_zero_warn(
            f"{type(base_model(model)).__name__} does not take a prompt shared by its completions: {why}. Each "
            "completion gets a row of its own: the same numbers, but the prompt is computed once for each."
        )


def rounding(model: nn.Module) -> float:
    """The mean difference, in nats per token, that rounding explains between two ways to the same log-probs."""
    return HALF_TOLERANCE if dtype_of_products(model) in HALF_PRECISIONS else TOLERANCE


def _short(prompt: Padded, completions: Sequence[Padded]) -> tuple[Padded, list[Padded]]:
    """The beginnings of the longest prompt and of its completions."""
    totals = [sum(sizes) for sizes in zip(*(part.sizes for part in (prompt, *completions)), strict=True)]
    row = totals.index(max(totals))
    return _beginning(prompt, row, PROMPT), [_beginning(completion, row, COMPLETION) for completion in completions]


def _beginning(padded: Padded, row: int, tokens: int) -> Padded:
    size = min(padded.sizes[row], tokens)
    return Padded(padded.ids[row : row + 1, :size], padded.mask[row : row + 1, :size], (size,))


@torch.no_grad()
def _demand_equal(model: nn.Module, prompt: Padded, completions: Sequence[Padded]) -> None:
    """Raises :class:`NotShared` if shared rows give other log-probs than plain ones, except for rounding."""
    unfit = unfit_attention(model)
    if unfit is not None:
        raise NotShared(unfit)
    with in_eval_mode(model):  # an adapter's dropout would make any two passes differ
        both = _Both.in_float32(model, prompt, completions)
        difference = _of_all_devices(model, both.largest_difference())
        if difference > TOLERANCE and _has_experts(model.config):  # rounding may send a token to another expert
            difference = min(difference, _difference_one_by_one(model, prompt, completions))
        of_head = _of_all_devices(model, both.head_difference())
    if difference > TOLERANCE:
        raise NotShared(f"its layers give other states, worth {difference:.2g} nats a token")
    if of_head > rounding(model):
        raise NotShared(f"its head's output is changed in a way unknown here, worth {of_head:.2g} nats a token")


def _of_all_devices(model: nn.Module, difference: float) -> float:
    """The largest difference on any device, if all of them run each layer together."""
    return largest(difference, embedding_weight(model).device) if in_lockstep(model) else difference


def _difference_one_by_one(model: nn.Module, prompt: Padded, completions: Sequence[Padded]) -> float:
    """As :meth:`_Both.largest_difference`, in float64 and with the experts computed one by one; else infinite."""
    with suppress(*_ERRORS), experts_one_by_one(model.config), computed_in(torch.float64, model, output_head(model)):
        return _Both.of(model, prompt, completions).largest_difference()
    return float("inf")


def _has_experts(config: Any) -> bool:
    return any("experts" in key and not key.startswith("_") for key in vars(config.get_text_config()))


@dataclass
class _Both:
    """The same tokens in shared and in plain rows.

    Args:
        model: the model.
        shared: [N, H] what the head gets for each completion token in shared rows.
        plain: [N, H] the same in plain rows.
        targets: [N] the tokens.
        logits: the model's own logits of the first tokens.
    """

    model: Any
    shared: Tensor
    plain: Tensor
    targets: Tensor
    logits: Tensor

    @classmethod
    def in_float32(cls, model: nn.Module, prompt: Padded, completions: Sequence[Padded]) -> _Both:
        """Computes both with layers in float32; the head stays as it is."""
        with computed_in(torch.float32, model, output_head(model)):
            return cls.of(model, prompt, completions)

    @classmethod
    def of(cls, model: nn.Module, prompt: Padded, completions: Sequence[Padded]) -> _Both:
        """Computes both."""
        layout = lay_out_padded(prompt, completions).to(prompt.ids.device)
        ids = torch.cat([padded.ids.flatten() for padded in (prompt, *completions)])[layout.source]
        hidden, record = hidden_states(model, ids, layout)
        _demand_layout(model, record)
        rows = plain_rows(prompt, completions)
        with _few_before(output_head(model), rows.rows, rows.columns) as kept:
            logits = model(
                input_ids=rows.ids, attention_mask=rows.mask.long(), use_cache=False, **outputs_of(model.config)
            ).logits
        return cls(model, hidden[layout.predicting], kept[0], rows.targets, logits[0])

    def largest_difference(self) -> float:
        """The most by which a token's logit differs, in nats; of the tokens whose states differ most."""
        difference = (self.shared - self.plain).float()
        furthest = difference[difference.norm(dim=-1).topk(min(FEW, len(difference))).indices]
        head = output_head(self.model)
        states = as_input(head, furthest)
        change = (head(states) - head(torch.zeros_like(states))).float()
        return float(change.abs().max() * abs(LogitTransform.of(self.model.config).factor))

    def head_difference(self) -> float:
        """The mean difference of a token's log-prob from that by the model's own logits, in nats."""
        count = len(self.logits)
        targets = self.targets[:count]
        own = self.logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
        head = output_head(self.model)
        logps, _ = token_logps(as_input(head, self.plain[:count]), targets, head, self.model.config)
        return float((logps - own).abs().mean())


def _demand_layout(model: Any, record: Pass) -> None:
    """Raises :class:`NotShared` unless each layer attended by the layout and by nothing else."""
    layers = model.config.get_text_config().num_hidden_layers
    if record.calls != layers:
        raise NotShared(f"its layers attend by themselves ({record.calls} of {layers} are given the layout)")
    if record.masked:
        raise NotShared(f"{record.masked} of its {layers} layers attend by a mask that the model makes by itself")
    hidden = sorted(record.masked_windows - record.windows)
    if hidden:
        raise NotShared(f"its attention has a window of {hidden[0]} tokens that only its mask shows")


@contextmanager
def _few_before(head: nn.Module, rows: Tensor, columns: Tensor) -> Iterator[list[Tensor]]:
    """Keeps the head's input at N places, [N, H], and gives the head the first few of them in its own dtype."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
        kept.append(inputs[0][rows, columns])
        return (as_input(head, kept[0][None, :FEW]), *inputs[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()
