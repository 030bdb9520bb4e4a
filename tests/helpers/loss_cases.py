"""Pairs for the tests of the losses, and one list of losses that every test of all losses runs over."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

import lit_align.losses as L
from lit_align.losses import PairLogps, PairTokens, PreferenceLoss


@dataclass(frozen=True)
class Case:
    """A loss, and where it is the exception to what the tester demands of all.

    Args:
        make: makes the loss.
        moves_rejected: whether the rejected completion is pushed down; not by a mere likelihood.
        only_when_wrong: whether the pull towards the chosen completion is demanded only of pairs that the policy
            has the wrong way round.
    """

    make: Callable[[], PreferenceLoss]
    moves_rejected: bool = True
    only_when_wrong: bool = False

    @property
    def name(self) -> str:
        source = inspect.getsource(self.make).strip() if inspect.isfunction(self.make) else self.make.__name__
        return source.split("lambda: ")[-1].rstrip("), ") if "lambda" in source else source


CASES = [
    Case(L.DPO),
    Case(lambda: L.DPO(beta=0.5, label_smoothing=0.1)),
    Case(L.RobustDPO),
    Case(L.LengthNormalizedDPO),
    Case(L.IPO),
    Case(lambda: L.IPO(length_normalize=True)),
    Case(L.EXO),
    Case(L.NCA),
    Case(L.BCO),
    Case(lambda: L.BCO(reward_shift=False)),
    Case(L.SPPO),
    Case(lambda: L.SoftSPPO(beta=0.01)),
    Case(lambda: L.SoftSPPO(beta=0.01, margin="probability")),
    Case(L.AOT),
    Case(L.AOTUnpaired),
    Case(lambda: L.AOT(label_smoothing=0.1)),
    Case(L.APOZero),
    Case(L.APODown),
    Case(L.DiscoPOP, only_when_wrong=True),
    Case(lambda: L.FDPO(L.ReverseKL())),
    Case(lambda: L.FDPO(L.ForwardKL())),
    Case(lambda: L.FDPO(L.JensenShannon())),
    Case(lambda: L.FDPO(L.AlphaDivergence(alpha=0.3))),
    Case(L.RSOHinge),
    Case(L.SLiCHF),
    Case(lambda: L.SLiCHF(delta=2.0, lambda_=0.0)),
    Case(lambda: L.SLiCHF(target="row")),
    Case(L.NLL, moves_rejected=False),
    Case(lambda: L.NLL(normalize="batch"), moves_rejected=False),
    Case(L.SimPO),
    Case(L.CPO),
    Case(lambda: L.CPO(normalize="batch")),
    Case(L.ORPO),
    Case(L.LDDPO),
    Case(lambda: L.LDDPO(alpha=0.3, loss=L.LengthNormalizedDPO())),
    Case(L.WPO),
    Case(lambda: L.WPO(L.SimPO(), alignment="none")),
    Case(lambda: L.WPO(L.LDDPO())),
    Case(L.RPO),
    Case(lambda: L.WeightedSum([L.LDDPO(), L.WPO(), L.BCO()], [0.5, 1.0, 2.0])),
]


def exported_losses() -> set[type[PreferenceLoss]]:
    """The classes of losses that can be used as they are."""
    classes = {value for value in vars(L).values() if isinstance(value, type)}
    return {c for c in classes if issubclass(c, PreferenceLoss) and not inspect.isabstract(c)}


def spread(logps: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Token log-probs [B, C] that are equal within a completion and sum to `logps`, and their mask."""
    mask = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
    return torch.where(mask, (logps / lengths)[:, None], torch.zeros((), dtype=logps.dtype)), mask


def pairs(
    chosen: list[float],
    rejected: list[float],
    reference_chosen: list[float],
    reference_rejected: list[float],
    chosen_lengths: list[int] | None = None,
    rejected_lengths: list[int] | None = None,
    dtype: torch.dtype = torch.float32,
    **others: list[float],
) -> PairLogps:
    """Pairs with everything that any loss needs; policy and reference log-probs are leaves that take a gradient.

    The token log-probs are made of the sums, so that a gradient reaches the sums whichever a loss reads.
    """

    def leaf(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=dtype).requires_grad_()

    def lengths(values: list[int] | None) -> Tensor:
        return torch.tensor(values if values is not None else [4] * len(chosen))

    policy, reference = (leaf(chosen), leaf(rejected)), (leaf(reference_chosen), leaf(reference_rejected))
    counts = lengths(chosen_lengths), lengths(rejected_lengths)
    (chosen_tokens, chosen_mask), (rejected_tokens, rejected_mask) = map(spread, policy, counts)
    reference_tokens = [spread(logps, count)[0] for logps, count in zip(reference, counts, strict=True)]
    zeros = [0.0] * len(chosen)
    optional = {name: torch.tensor(others.get(name, zeros), dtype=dtype) for name in OTHERS}
    return PairLogps(
        *policy,
        *reference,
        *counts,
        target_lengths=torch.full((len(chosen),), 7),
        tokens=PairTokens(chosen_tokens, rejected_tokens, chosen_mask, rejected_mask, *reference_tokens),
        **optional,
    )


OTHERS = ("policy_target_logps", "margin", "policy_chosen_collisions", "policy_rejected_collisions")


def ordinary(dtype: torch.dtype = torch.float32) -> PairLogps:
    """Three pairs near the reference, the second one the wrong way round; lengths and orders differ."""
    return pairs(
        [-10.0, -20.0, -5.0],
        [-10.5, -19.0, -5.5],
        [-11.0, -11.0, -8.0],
        [-11.5, -11.5, -6.0],
        [4, 5, 3],
        [5, 4, 3],
        dtype,
        policy_target_logps=[-9.0] * 3,
        margin=[0.25, 0.5, 1.0],
        policy_chosen_collisions=[-6.0, -12.0, -4.0],
        policy_rejected_collisions=[-7.0, -11.0, -3.0],
    )


def wrong() -> PairLogps:
    """Pairs of which the policy prefers the rejected completion by far."""
    return replace_leaves(ordinary(), chosen=[-60.0, -70.0, -65.0], rejected=[-3.0, -2.0, -4.0])


def replace_leaves(batch: PairLogps, chosen: list[float], rejected: list[float]) -> PairLogps:
    """The batch with other policy log-probs."""
    assert batch.reference_chosen_logps is not None and batch.reference_rejected_logps is not None
    references = batch.reference_chosen_logps.tolist(), batch.reference_rejected_logps.tolist()
    lengths = batch.chosen_lengths.tolist(), batch.rejected_lengths.tolist()
    others = {name: getattr(batch, name).tolist() for name in OTHERS}
    return pairs(chosen, rejected, *references, *lengths, batch.policy_chosen_logps.dtype, **others)


def row(batch: PairLogps, index: int) -> PairLogps:
    """One pair of the batch, alone."""

    def cut(value: Any) -> Any:
        if isinstance(value, PairTokens):
            return PairTokens(**{f.name: cut(getattr(value, f.name)) for f in fields(PairTokens)})
        return None if value is None else value[index : index + 1]

    return PairLogps(**{f.name: cut(getattr(batch, f.name)) for f in fields(PairLogps)})


def swapped(batch: PairLogps) -> PairLogps:
    """The pairs with chosen and rejected in each other's place."""

    def other(name: str) -> str:
        return name.replace("chosen", "*").replace("rejected", "chosen").replace("*", "rejected")

    def swap(value: Any) -> Any:
        return replace(value, **{f.name: getattr(value, other(f.name)) for f in fields(value)})

    assert batch.tokens is not None and batch.margin is not None
    return replace(swap(batch), tokens=swap(batch.tokens), margin=-batch.margin)
