"""Whether a model takes a prompt shared by its completions, found out by trying it against its plain forward pass.

A model may take short rows and fail on long ones, as one does whose attention has a window that its mask does not
show. So a verdict holds up to a width of rows, and a wider row is checked before it is computed. The row that is
checked is lengthened to the end of its class of widths: no row is ever wider than one that was checked, and so many
classes as there are, so many checks there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_align.batch import Padded
from lit_align.policy.exact_pass import computed_in
from lit_align.policy.logps import plain_logps
from lit_align.policy.modes import in_eval_mode
from lit_align.policy.shared_logps import shared_logps
from lit_align.policy.shared_prompt import unfit_attention

TOLERANCE = 1e-3
"""Nats by which, in float32, any token's log-prob may differ between two ways to it."""
NARROWEST = 64
"""Tokens of the rows of the first class of widths."""
GROWTH = 1.5
"""How much wider the rows of each class may be than those of the one before: 12 classes up to 5,500 tokens."""

_ERRORS = (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError, AssertionError)


@dataclass
class SharedRowsCheck:
    """What is known of one model.

    The verdict on a row depends on its width alone, not on the rows before: a resumed run, another rank and a part
    of a batch compute a row in the same way.

    Args:
        accepted: the widest rows that were right.
        refused: the narrowest class of rows that were not, 0 for all rows; None where all were right.
        warned: whether it was said.
    """

    accepted: int = 0
    refused: int | None = None
    warned: bool = False

    @torch.no_grad()
    def takes(self, model: nn.Module, prompt: Padded, completions: Sequence[Padded]) -> bool:
        """Whether the model computes these prompts and completions rightly in shared rows."""
        widths = torch.stack([prompt.lengths, *(completion.lengths for completion in completions)]).sum(0)
        width = class_of(int(widths.max()))
        if width > self.accepted and not self._refuses(width):
            row = int(widths.argmax())
            self._judge(model, [part.ids[row][part.mask[row]] for part in (prompt, *completions)], width)
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
            self.accepted = width
        else:
            self._refuse(model, width, f"its log-probs differ by up to {difference:.2g} nats a token")

    def _refuse(self, model: nn.Module, width: int, why: str) -> None:
        self.refused = width
        if not self.warned:
            self.warned = True
            base = getattr(model, "get_base_model", lambda: model)()
            where = f" in rows of more than {class_before(width)} tokens" if width > NARROWEST else ""
            rank_zero_warn(
                f"{type(base).__name__} does not take a prompt shared by its completions{where}: {why}. There each "
                "completion gets a row of its own, which gives the same numbers and costs the prompt once for each."
            )


def class_of(width: int) -> int:
    """The widest row of the class of rows that are so wide."""
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
        width: tokens of all, at least as many as there are.
        positions: that the model has: no prompt with one of its completions gets longer than that.
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
    """The largest difference between the two ways to a token's log-prob, rounding aside."""
    difference = _difference_in(torch.float32, model, parts)
    if difference > TOLERANCE and _has_experts(model.config):  # a token may go to another expert by rounding alone
        with suppress(*_ERRORS), _experts_one_by_one(model.config):
            difference = min(difference, _difference_in(torch.float64, model, parts))
    return difference


def _difference_in(dtype: torch.dtype, model: nn.Module, parts: Sequence[Tensor]) -> float:
    prompt, *completions = (Padded(part[None], torch.ones_like(part[None], dtype=torch.bool)) for part in parts)
    head = model.get_output_embeddings()  # type: ignore[operator]
    with in_eval_mode(model), computed_in(dtype, model, head):  # an adapter's dropout would make any two passes differ
        shared = torch.cat([one.logps[0] for one in shared_logps(model, prompt, completions)])
        plain = torch.cat([plain_logps(model, prompt, [one])[0].logps[0] for one in completions])
    return (shared - plain).abs().max().item()


def _has_experts(config: Any) -> bool:
    return any("experts" in key and not key.startswith("_") for key in vars(config.get_text_config()))


@contextmanager
def _experts_one_by_one(config: Any) -> Iterator[None]:
    """Inside it experts are computed in the way that takes any dtype."""
    text = config.get_text_config()
    usual = getattr(text, "_experts_implementation", None)
    text._experts_implementation = "eager"
    try:
        yield
    finally:
        text._experts_implementation = usual
