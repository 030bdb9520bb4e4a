"""A preference pair as token ids, and a micro-batch of pairs as tensors.

Prompt and completions are separate tensors: the forward pass decides how to lay them out in rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_align.on_device import OnDevice
from lit_align.shared_rows import SharedRows, lay_out


@dataclass(frozen=True, slots=True, eq=False)
class PairReference:
    """The reference's log-probs of a pair, as they were when the pair was sampled.

    Args:
        chosen: [C] float32 log-probs of the chosen completion's tokens, in nats.
        rejected: [R] float32 log-probs of the rejected completion's tokens, in nats.
        version: number of refreshes of the reference until then; a later reference gives other values.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    version: int


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedPair:
    """A pair as int32 arrays of token ids.

    Args:
        prompt: [P] ids, chat template and generation prompt included.
        chosen: [C] ids, with the end-of-turn token if the completion ended by itself.
        rejected: [R] ids, with the end-of-turn token if the completion ended by itself.
        margin: chosen minus rejected score; NaN if unknown.
        on_policy: whether the pair was sampled from the policy.
        target: ids of SLiC-HF's regulariser target; None if the row has none.
        reference: the reference log-probs of an on-policy pair; None for others, or if the loss has no reference.
    """

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    margin: float
    on_policy: bool
    target: np.ndarray | None = None
    reference: PairReference | None = None


@dataclass(frozen=True)
class Padded(OnDevice):
    """Token sequences padded on the right.

    Args:
        ids: [B, T] int64.
        mask: [B, T] bool, True where a token is real. Lengths are read from it, never from `ids`.
        known_sizes: the numbers of real tokens in each row, if the host knows them.
    """

    ids: Tensor
    mask: Tensor
    known_sizes: tuple[int, ...] | None = None

    @classmethod
    def from_sequences(cls, sequences: Sequence[Sequence[int] | np.ndarray], pad_id: int) -> Padded:
        """Pads to the longest of `sequences`."""
        sizes = tuple(len(sequence) for sequence in sequences)
        mask = torch.arange(max(sizes))[None, :] < torch.tensor(sizes)[:, None]
        ids = torch.full(mask.shape, pad_id, dtype=torch.long)
        ids[mask] = torch.cat([torch.as_tensor(sequence, dtype=torch.long) for sequence in sequences])
        return cls(ids, mask, sizes)

    @property
    def lengths(self) -> Tensor:
        """[B] int64, the number of real tokens in each row."""
        return self.mask.sum(-1)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The lengths as numbers of the host, which waits for the device if it does not know them."""
        return tuple(self.lengths.tolist()) if self.known_sizes is None else self.known_sizes

    def part(self, start: int, stop: int) -> Padded:
        """Some of the sequences, as wide as before."""
        sizes = None if self.known_sizes is None else self.known_sizes[start:stop]
        return Padded(self.ids[start:stop], self.mask[start:stop], sizes)


class PairBatch(OnDevice):
    """B preference pairs.

    It is no dataclass, since Lightning casts the tensors in dataclasses to the run's precision, and `bf16-true` would
    round the stored log-probs.

    Args:
        prompt: prompt tokens, chat template and generation prompt included.
        chosen: tokens of the chosen completions, with the end-of-turn token if they ended by themselves.
        rejected: tokens of the rejected completions, with the end-of-turn token if they ended by themselves.
        on_policy: [B] bool, True for a pair that was sampled from the policy.
        margin: [B] float32, chosen minus rejected score; NaN if unknown.
        counted: [B] bool, False for a pair that only fills up a rank's share of the held-out pairs and is in no mean;
            None if all count.
        target: tokens of SLiC-HF's regulariser targets; None if the data have none.
        reference_chosen_logps: [B] float32 reference log-probs of the chosen completions; None if they were not
            computed ahead.
        reference_rejected_logps: [B] float32 reference log-probs of the rejected completions, or None.
        reference_chosen_token_logps: [B, C] float32 reference log-probs of the chosen tokens, 0 at padding, or None.
        reference_rejected_token_logps: [B, R] float32 reference log-probs of the rejected tokens, 0 at padding, or
            None.
        weight: the factor of the micro-batch's mean loss: its pairs over those that a micro-batch has on average.
        rows: the layout of all pairs in one row, with the targets if there are any; None lays them out when needed.
    """

    def __init__(
        self,
        prompt: Padded,
        chosen: Padded,
        rejected: Padded,
        on_policy: Tensor,
        margin: Tensor,
        target: Padded | None = None,
        reference_chosen_logps: Tensor | None = None,
        reference_rejected_logps: Tensor | None = None,
        reference_chosen_token_logps: Tensor | None = None,
        reference_rejected_token_logps: Tensor | None = None,
        counted: Tensor | None = None,
        rows: SharedRows | None = None,
        weight: float = 1.0,
    ) -> None:
        self.prompt = prompt
        self.chosen = chosen
        self.rejected = rejected
        self.on_policy = on_policy
        self.margin = margin
        self.target = target
        self.reference_chosen_logps = reference_chosen_logps
        self.reference_rejected_logps = reference_rejected_logps
        self.reference_chosen_token_logps = reference_chosen_token_logps
        self.reference_rejected_token_logps = reference_rejected_token_logps
        self.counted = counted
        self.rows = rows
        self.weight = weight

    def only_counted(self, values: Tensor) -> Tensor:
        """Leaves out of [B, ...] values those of pairs that do not count."""
        return values if self.counted is None else values[self.counted]

    def __len__(self) -> int:
        return len(self.prompt.ids)

    @property
    def longest_row(self) -> int:
        """Tokens of the longest row, which holds a prompt and its completions."""
        return max(map(sum, zip(*(part.sizes for part in (self.prompt, *self.completions)), strict=True)))

    @property
    def completions(self) -> list[Padded]:
        """The chosen and the rejected completions and, if there are any, the targets."""
        return [self.chosen, self.rejected, *([] if self.target is None else [self.target])]

    def part(self, start: int, stop: int) -> PairBatch:
        """Some of the pairs, as wide as before; without the reference's log-probs, which no forward pass needs."""
        return PairBatch(
            prompt=self.prompt.part(start, stop),
            chosen=self.chosen.part(start, stop),
            rejected=self.rejected.part(start, stop),
            on_policy=self.on_policy[start:stop],
            margin=self.margin[start:stop],
            target=None if self.target is None else self.target.part(start, stop),
            rows=self.rows if (start, stop) == (0, len(self)) else None,
        )


def collate(
    pairs: Sequence[TokenizedPair],
    pad_id: int,
    reference: Sequence[tuple[np.ndarray, np.ndarray] | None] = (),
) -> PairBatch:
    """Makes a batch of pairs. It has `target` if every pair has one, and the reference's log-probs if all have them.

    Args:
        pairs: one or more pairs.
        pad_id: the token id at padding.
        reference: the reference's log-probs of each pair's chosen and rejected tokens; None if they are not known.
    """
    targets = [pair.target for pair in pairs if pair.target is not None]
    chosen = Padded.from_sequences([pair.chosen for pair in pairs], pad_id)
    rejected = Padded.from_sequences([pair.rejected for pair in pairs], pad_id)
    logps = [values for values in reference if values is not None]
    known = _reference_logps(chosen, rejected, logps) if len(logps) == len(pairs) else {}
    batch = PairBatch(
        prompt=Padded.from_sequences([pair.prompt for pair in pairs], pad_id),
        chosen=chosen,
        rejected=rejected,
        on_policy=torch.tensor([pair.on_policy for pair in pairs]),
        margin=torch.tensor([pair.margin for pair in pairs], dtype=torch.float32),
        target=Padded.from_sequences(targets, pad_id) if len(targets) == len(pairs) else None,
        **known,
    )
    if all(batch.prompt.sizes):
        batch.rows = lay_out_padded(batch.prompt, batch.completions)
    return batch


def lay_out_padded(prompt: Padded, completions: Sequence[Padded]) -> SharedRows:
    """The layout of the completions of each prompt behind it, on the CPU.

    Args:
        prompt: [B, P], each with at least one token.
        completions: any number of [B, C_j].
    """
    widths = [padded.ids.shape[1] for padded in (prompt, *completions)]
    return lay_out(prompt.sizes, [completion.sizes for completion in completions], widths)


def _reference_logps(
    chosen: Padded, rejected: Padded, logps: Sequence[tuple[np.ndarray, np.ndarray]]
) -> dict[str, Any]:
    chosen_tokens = torch.zeros(chosen.mask.shape)
    rejected_tokens = torch.zeros(rejected.mask.shape)
    chosen_tokens[chosen.mask] = torch.from_numpy(np.concatenate([of_pair[0] for of_pair in logps]))
    rejected_tokens[rejected.mask] = torch.from_numpy(np.concatenate([of_pair[1] for of_pair in logps]))
    return {
        "reference_chosen_logps": chosen_tokens.sum(-1),
        "reference_rejected_logps": rejected_tokens.sum(-1),
        "reference_chosen_token_logps": chosen_tokens,
        "reference_rejected_token_logps": rejected_tokens,
    }
