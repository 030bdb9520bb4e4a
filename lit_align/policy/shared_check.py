"""Checks whether a model can share a prompt among its completions, by comparison with its plain forward pass.

A model may be right on short rows and wrong on long ones, for example if its attention has a window that its mask does
not show. So a result holds up to a width of rows, and a wider row is checked before it is computed. Widths fall into
classes, and the checked row is lengthened to the widest of its class: no row is wider than a checked one, and there is
at most one check for each class.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_align.batch import Padded
from lit_align.policy.exact_pass import computed_in
from lit_align.policy.internals import experts_one_by_one
from lit_align.policy.logps import plain_logps
from lit_align.policy.modes import in_eval_mode
from lit_align.policy.outputs import output_head
from lit_align.policy.sharding import in_lockstep
from lit_align.policy.shared_logps import shared_logps
from lit_align.policy.shared_prompt import unfit_attention
from lit_align.ranks import largest

TOLERANCE = 1e-3
"""The largest difference of a token's log-prob, in nats, that two computations in float32 may have."""
NARROWEST = 64
"""The widest row of the first class, in tokens."""
GROWTH = 1.5
"""The ratio of the widest rows of two successive classes: 12 classes up to 5,500 tokens."""

_ERRORS = (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError, AssertionError)


@dataclass
class SharedRowsCheck:
    """The results of the checks of one model.

    The result for a row depends only on its width, not on the rows before: a resumed run, another rank and a part
    of a batch compute a row in the same way.

    Args:
        accepted: the widest rows that were right.
        refused: the narrowest class of rows that were wrong, 0 for all rows; None if all were right.
        warned: whether the warning was given.
    """

    accepted: int = 0
    refused: int | None = None
    warned: bool = False

    @torch.no_grad()
    def takes(self, model: nn.Module, prompt: Padded, completions: Sequence[Padded]) -> bool:
        """Whether the model computes these prompts and completions correctly in shared rows."""
        widths = torch.stack([prompt.lengths, *(completion.lengths for completion in completions)]).sum(0)
        width = class_of(int(widths.max()))
        unknown = width if width > self.accepted and not self._refuses(width) else 0
        if in_lockstep(model):  # then all devices check, or none
            unknown = int(largest(unknown, widths.device))
        if unknown:
            row = int(widths.argmax())
            self._judge(model, [part.ids[row][part.mask[row]] for part in (prompt, *completions)], unknown)
        return not self._refuses(width)

    def _refuses(self, width: int) -> bool:
        return self.refused is not None and width >= self.refused

    def _judge(self, model: nn.Module, parts: Sequence[Tensor], width: int) -> None:
        config: Any = model.config
        unfit = unfit_attention(config)
        if unfit is not None:
            return self._refuse(model, 0, unfit)
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        try:
            difference = _difference(model, lengthened(parts, width, positions))
        except torch.OutOfMemoryError:
            raise
        except _ERRORS as error:
            return self._refuse(model, 0, f"it raised {type(error).__name__}: {error}")
        if difference <= TOLERANCE:
            self.accepted = max(self.accepted, width)
        else:
            self._refuse(model, width, f"its log-probs differ by up to {difference:.2g} nats a token")

    def _refuse(self, model: nn.Module, width: int, why: str) -> None:
        self.refused = width if self.refused is None else min(self.refused, width)
        if not self.warned:
            self.warned = True
            base = getattr(model, "get_base_model", lambda: model)()
            where = f" in rows of more than {class_before(width)} tokens" if width > NARROWEST else ""
            rank_zero_warn(
                f"{type(base).__name__} does not take a prompt shared by its completions{where}: {why}. There each "
                "completion gets a row of its own: the same numbers, but the prompt is computed once for each."
            )


def class_of(width: int) -> int:
    """The widest row of the class that a row of `width` tokens is in."""
    widest = NARROWEST
    while widest < width:
        widest = int(widest * GROWTH)
    return widest


def class_before(width: int) -> int:
    """The widest row of the class before the one whose widest row is `width`."""
    widest = NARROWEST
    while int(widest * GROWTH) < width:
        widest = int(widest * GROWTH)
    return widest


def lengthened(parts: Sequence[Tensor], width: int, positions: int | None) -> list[Tensor]:
    """A prompt and its completions, each repeated in proportion until they are `width` tokens together.

    Args:
        parts: token ids of the prompt and of each completion.
        width: tokens of all parts together, at least as many as there are.
        positions: the model's number of positions, which no prompt with one of its completions may exceed.
    """
    lengths = [len(part) for part in parts]
    factor = width / sum(lengths)
    if positions is not None:
        factor = min(factor, (positions - 2) / (lengths[0] + max(lengths[1:])))  # parts are rounded up by one at most
    ends = [int(end * max(factor, 1.0) + 0.5) for end in accumulate(lengths)]
    return [_repeated(part, end - start) for part, start, end in zip(parts, [0, *ends], ends, strict=False)]


def _repeated(ids: Tensor, length: int) -> Tensor:
    return ids.repeat(-(-length // max(len(ids), 1)))[:length]


def _difference(model: nn.Module, parts: Sequence[Tensor]) -> float:
    """The largest difference between shared and plain rows in a token's log-prob, except for rounding."""
    difference = _difference_in(torch.float32, model, parts)
    if in_lockstep(model):
        difference = largest(difference, parts[0].device)
    if difference > TOLERANCE and _has_experts(model.config):  # rounding may send a token to another expert
        with suppress(*_ERRORS), experts_one_by_one(model.config):
            difference = min(difference, _difference_in(torch.float64, model, parts))
    return difference


def _difference_in(dtype: torch.dtype, model: nn.Module, parts: Sequence[Tensor]) -> float:
    prompt, *completions = (Padded(part[None], torch.ones_like(part[None], dtype=torch.bool)) for part in parts)
    head = output_head(model)
    with in_eval_mode(model), computed_in(dtype, model, head):  # an adapter's dropout would make any two passes differ
        shared = shared_logps(model, prompt, completions)
        plain = [plain_logps(model, prompt, [completion])[0] for completion in completions]
    differences = [(a.logps - b.logps).abs().max() for a, b in zip(shared, plain, strict=True)]
    return torch.stack(differences).max().item()


def _has_experts(config: Any) -> bool:
    return any("experts" in key and not key.startswith("_") for key in vars(config.get_text_config()))
