"""AlignmentModule: a policy, its frozen reference and one loss."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lit_align.batch import PairBatch
from lit_align.losses import LossOutput, PairLogps, PreferenceLoss
from lit_align.policy.forward import CompletionForward, batch_logps
from lit_align.policy.kernels import demand_kernels
from lit_align.policy.load import load_model, load_stop_ids, load_tokenizer
from lit_align.policy.logps import TokenLogps
from lit_align.policy.outputs import router_loss_weight
from lit_align.policy.reference import AdapterOff, ModelReference, Reference, default_reference
from lit_align.policy.sharding import gathered
from lit_align.policy.shared_check import rounding
from lit_align.policy.spec import PolicySpec
from lit_align.run_parts import datamodule_of, trainer_of
from lit_align.training.out_of_memory import Run, SplitOnOOM, explain_out_of_memory
from lit_align.training.pair_module import PairModule, pair_values
from lit_align.training.pairs import ReferencePairLogps, make_pair_logps

REFRESHES_KEY = "reference_refreshes"
SPLIT_KEY = "computed_in_parts"
POLICY_KEY = "policy_spec"
"""The key of the policy's settings in a checkpoint, for readers that have no configuration."""


class AlignmentModule(PairModule):
    """Trains a policy on preference pairs (:class:`lit_align.batch.PairBatch`).

    The models are loaded in `configure_model`, so that making the module costs nothing.
    On one device, a micro-batch that does not fit into the memory is computed in parts, with the same numbers
    (:mod:`lit_align.training.out_of_memory`).

    Args:
        policy: the model to train.
        loss: the loss over pairs.
        reference: the model that the policy is compared with. None takes the policy as it is at the start: a copy
            of `policy.adapter`, the base with the adapter off for `policy.lora`, a frozen copy otherwise.
            A loss that needs no reference gets none.
        kwargs: `optimizer`, `lr_scheduler` and `on_nonfinite`, see :class:`~lit_align.training.pair_module.PairModule`.
    """

    def __init__(
        self,
        policy: PolicySpec,
        loss: PreferenceLoss,
        reference: Reference | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.spec = policy
        self.policy: nn.Module | None = None
        self.loss = loss
        self.reference = (reference or default_reference(policy)) if loss.needs_reference else None
        self._forward = CompletionForward()
        self._split = SplitOnOOM(policy)
        self._start_checked = False

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's tokenizer, loaded at the first use, without the model."""
        return load_tokenizer(self.spec)

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids of the tokens that end an answer, by the model's own generation config."""
        return load_stop_ids(self.spec)

    def configure_model(self) -> None:
        if self.policy is not None:
            return
        if self.spec.kernels is not None:
            demand_kernels(self.spec.kernels, self._device_of_run().type)
        self.policy = self.load_and_spread(self._load)

    def _load(self) -> nn.Module:
        policy = load_model(self.spec)
        if self.reference is not None:
            self.reference.attach(policy, self.spec)
        return policy

    # ------------------------------------------------------------------ forward

    def pair_logps(self, batch: PairBatch) -> PairLogps:
        """Log-probs of a batch under the policy, with gradients, and under the reference, without.

        Raises:
            ValueError: the loss needs targets that the batch does not have.
        """
        return self._pairs(batch, self._policy_logps)

    def _pairs(self, batch: PairBatch, run: Run) -> PairLogps:
        reference = self._reference_logps(batch)
        return make_pair_logps(batch, run(batch), reference, with_tokens=self.loss.needs_token_logps)

    def _policy_logps(self, batch: PairBatch, with_router_loss: bool = False) -> list[TokenLogps]:
        loss = self.loss
        policy = self._loaded_policy()
        return batch_logps(
            policy, batch, self._forward, loss.needs_target, loss.needs_collisions, with_router_loss=with_router_loss
        )

    def _trained_logps(self, batch: PairBatch, with_router_loss: bool = False) -> list[TokenLogps]:
        """As :meth:`_policy_logps`, but in parts if memory is short, in the forward and in the backward."""
        run = functools.partial(self._policy_logps, with_router_loss=with_router_loss)
        if not self._alone():
            return run(batch)
        trained = [parameter for parameter in self._loaded_policy().parameters() if parameter.requires_grad]
        return self._split.logps(run, batch, trained, self.trainer.precision_plugin.train_step_context)

    def _evaluated_logps(self, batch: PairBatch) -> list[TokenLogps]:
        return self._split.logps(self._policy_logps, batch) if self._alone() else self._policy_logps(batch)

    def _alone(self) -> bool:
        """Whether no other device waits for this one, so that it may repeat a part."""
        trainer = trainer_of(self)
        return trainer is None or isinstance(trainer.strategy, SingleDeviceStrategy)

    def _explained(self) -> AbstractContextManager[None]:
        return nullcontext() if self._alone() else explain_out_of_memory(self.trainer.accumulate_grad_batches)

    def _reference_logps(self, batch: PairBatch) -> ReferencePairLogps | None:
        if self.reference is None:
            return None
        stored = ReferencePairLogps.stored_in(batch, with_tokens=self.loss.needs_token_logps)
        return stored or ReferencePairLogps.of(*self.run_reference(batch))

    @torch.no_grad()
    def run_reference(self, batch: PairBatch) -> list[TokenLogps]:
        """Log-probs of the chosen and the rejected tokens under the reference, from a forward pass.

        Raises:
            RuntimeError: the loss has no reference.
        """
        if self.reference is None:
            raise RuntimeError(f"{type(self.loss).__name__} has no reference to run.")
        with self.reference.active(self._loaded_policy()) as model:

            def run(pairs: PairBatch) -> list[TokenLogps]:
                return batch_logps(model, pairs, self._forward)

            return self._split.logps(run, batch) if self._alone() else run(batch)

    @contextmanager
    def reference_gathered(self) -> Iterator[None]:
        """Gives each device the whole reference within the block, to run it alone. All ranks enter it together."""
        assert self.reference is not None
        with self.reference.active(self._loaded_policy()) as model:
            pass  # now it is loaded
        with gathered(model):
            yield

    def _loaded_policy(self) -> nn.Module:
        if self.policy is None:
            raise RuntimeError("The policy is not loaded yet: a Trainer calls `configure_model`, or call it yourself.")
        return self.policy

    def refresh_reference(self) -> None:
        """Makes the policy's current weights the reference.

        Raises:
            RuntimeError: the loss has no reference, or its form cannot be refreshed.
        """
        if self.reference is None:
            raise RuntimeError(f"{type(self.loss).__name__} has no reference to refresh: switch the refresh off.")
        self.reference.refresh(self._loaded_policy())
        self.loss.reference_changed()

    # ------------------------------------------------------------------ steps

    def compute_loss(self, batch: PairBatch) -> tuple[PairLogps, LossOutput]:
        """Computes the log-probs and the loss of a training step, ready for `backward`, without logging anything.

        A mixture of experts whose config says `output_router_logits` adds its balancing loss, times its
        `router_aux_loss_coef`, to the loss of each pair, as the model's own loss does.
        """
        weight = router_loss_weight(self._loaded_policy().config)
        router: list[TokenLogps] = []

        def run(pairs: PairBatch) -> list[TokenLogps]:
            completions = self._trained_logps(pairs, with_router_loss=weight > 0)
            router.extend([completions.pop()] if weight else [])
            return completions

        with self._explained():
            pairs = self._pairs(batch, run)
        output = self.loss(pairs)
        return pairs, _add_router_loss(output, router[0].sum(), weight) if router else output

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        pairs, output = self.compute_loss(batch)
        if not self._start_checked:
            self._start_checked = True
            if self.global_step == 0:
                self._check_start(pairs, batch)
        values = {**_values(pairs, output), "on_policy_share": batch.on_policy}
        self.log_training(batch, values, self._drift(pairs))
        return batch.weight * output.losses.mean()

    def _drift(self, pairs: PairLogps) -> dict[str, Tensor]:
        """The policy's distance from the reference in nats an answer, where pairs are sampled from the policy.

        The mean log-ratio of a policy to its reference over answers of the policy estimates KL(policy || reference).
        """
        on_policy = getattr(datamodule_of(self.trainer), "on_policy_share", 0.0) > 0  # asked without the device
        if self.reference is None or not on_policy:
            return {}
        reference_chosen, reference_rejected = pairs.references()
        chosen = pairs.policy_chosen_logps - reference_chosen
        rejected = pairs.policy_rejected_logps - reference_rejected
        return {"kl": (chosen + rejected) / 2}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        with self._explained():
            super().backward(loss, *args, **kwargs)

    def settings(self) -> dict[str, Any]:
        """See :meth:`PairModule.settings`."""
        return {"policy": self.spec, "loss": self.loss, "reference": self.reference}

    def evaluate_pairs(self, batch: PairBatch) -> dict[str, Tensor]:
        """See :meth:`PairModule.evaluate_pairs`."""
        pairs = self._pairs(batch, self._evaluated_logps)
        return _values(pairs, self.loss(pairs))

    def rewards(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """The implicit rewards of the chosen and of the rejected completions, each [B]."""
        output = self.loss(self._pairs(batch, self._evaluated_logps))
        return output.chosen_rewards, output.rejected_rewards

    # ------------------------------------------------------------------ step 0

    def _check_start(self, pairs: PairLogps, batch: PairBatch) -> None:
        """Warns if the policy does not start at its reference, and names the likeliest reason."""
        if self.reference is None:
            return
        reference_chosen, reference_rejected = pairs.references()
        chosen = (pairs.policy_chosen_logps - reference_chosen).abs() / pairs.chosen_lengths
        rejected = (pairs.policy_rejected_logps - reference_rejected).abs() / pairs.rejected_lengths
        difference = torch.cat([chosen, rejected]).max().item()
        if not difference <= rounding(self._loaded_policy()):
            rank_zero_warn(
                f"Before the first step the policy and its reference differ by up to {difference:.3g} nats a token, "
                f"so the rewards do not start at 0 and the loss not at its neutral value (ln 2 for DPO). "
                f"{self._suspect(batch)}"
            )

    def _suspect(self, batch: PairBatch) -> str:
        """The likeliest reason for a policy that differs from its reference at the start."""
        policy = self._loaded_policy()
        if self.spec.adapter is not None and isinstance(self.reference, AdapterOff):
            return "`policy.adapter` is on in the policy and off in the reference: take AdapterCopy as the reference."
        if any(isinstance(m, nn.Dropout) and m.p > 0 and m.training for m in policy.modules()):
            return "Dropout is on in the policy: DPO's convention is none."
        if isinstance(self.reference, ModelReference) and self.reference.spec is not None:
            return f"The reference {self.reference.spec.model!r} is another model than the policy's start: is it meant?"
        if batch.reference_chosen_logps is not None:
            return "The reference log-probs were computed ahead: from another model, template or set of tokens?"
        return "Were weights loaded, or changed, after the reference was made?"

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the trained weights, and those of a reference that cannot be loaded anew; never the frozen base."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[REFRESHES_KEY] = self.reference.refreshes if self.reference is not None else 0
        checkpoint[SPLIT_KEY] = self._split.state(self._device_of_run())
        checkpoint[POLICY_KEY] = asdict(self.spec)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See :meth:`PairModule.on_load_checkpoint`."""
        if self.reference is not None:
            self.reference.refreshes = checkpoint.get(REFRESHES_KEY, 0)
        super().on_load_checkpoint(checkpoint)
        self._split.restore(checkpoint.get(SPLIT_KEY, {}), self._device_of_run())

    def saved_names(self) -> set[str]:
        """Names of the tensors in a checkpoint: the trained weights, a refreshed reference's, the loss's state."""
        kept: list[nn.Parameter] = []
        if self.reference is not None:
            kept = self.reference.saved_parameters(self._loaded_policy())
        ids = {id(parameter) for parameter in kept}
        weights = {name for name, parameter in self.named_parameters() if id(parameter) in ids}
        return super().saved_names() | weights | {f"loss.{name}" for name in self.loss.state_dict()}

    def trained_buffers(self) -> Iterable[Tensor]:
        """See :meth:`PairModule.trained_buffers`."""
        return self.loss.buffers()

    def _device_of_run(self) -> torch.device:
        """The Trainer's, which the module may not have been moved to yet."""
        trainer = trainer_of(self)
        return self.device if trainer is None else trainer.strategy.root_device


def _add_router_loss(output: LossOutput, router_losses: Tensor, weight: float) -> LossOutput:
    metrics = {**output.metrics, "router_loss": router_losses.detach()}
    return replace(output, losses=output.losses + weight * router_losses, metrics=metrics)


def _values(pairs: PairLogps, output: LossOutput) -> dict[str, Tensor]:
    """The logged values of a step by name, each [B]."""
    chosen = output.chosen_rewards
    rejected = output.rejected_rewards
    return {
        **pair_values(output.losses, chosen, rejected, right=chosen > rejected),
        "logps/chosen": pairs.policy_chosen_logps,
        "logps/rejected": pairs.policy_rejected_logps,
        "lengths/chosen": pairs.chosen_lengths,
        "lengths/rejected": pairs.rejected_lengths,
        **output.metrics,
    }
