"""The forms of the frozen reference of a preference loss."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from lit_align.policy.load import load_model, load_tokenizer
from lit_align.policy.quiet import quiet_libraries
from lit_align.policy.sharding import is_sharded, shard_like
from lit_align.policy.spec import PolicySpec
from lit_align.ranks import one_at_a_time

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

POLICY_ADAPTER = "default"
REFERENCE_ADAPTER = "reference"


class Reference(nn.Module, ABC):
    """The model that the policy is compared with, which is never trained.

    Attributes:
        can_refresh: whether :meth:`refresh` works.
        refreshes: number of refreshes so far.
    """

    can_refresh: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.refreshes = 0

    @abstractmethod
    def attach(self, policy: nn.Module, spec: PolicySpec) -> None:
        """Prepares the reference from the freshly loaded policy; called once.

        Raises:
            ValueError: the policy cannot have this form of reference.
        """

    @abstractmethod
    def active(self, policy: nn.Module) -> AbstractContextManager[nn.Module]:
        """Gives the model to run as the reference, within the block; afterwards the policy is as before."""

    def refresh(self, policy: nn.Module) -> None:
        """Makes the policy's current weights the reference.

        Raises:
            RuntimeError: this form of reference cannot be refreshed.
        """
        if not self.can_refresh:
            raise RuntimeError(
                f"{type(self).__name__} stays as it is and cannot be refreshed. Take `AdapterCopy` (with LoRA) or "
                "`ModelReference` without a model of its own (full fine-tuning), or switch the refresh off."
            )
        self._copy_from(policy)
        self.refreshes += 1

    def _copy_from(self, policy: nn.Module) -> None:
        raise NotImplementedError(f"{type(self).__name__} has can_refresh = True, so it must define `_copy_from`.")

    def saved_parameters(self, policy: nn.Module) -> list[nn.Parameter]:
        """The parameters that a checkpoint must hold after `refreshes` refreshes; others are loaded at each start."""
        return []

    def initial_spec(self, policy: PolicySpec) -> PolicySpec | None:
        """The model that the reference equals until it is refreshed, so that its log-probs can be computed ahead.

        None means that there is no such model, and the reference runs at each step. A subclass in a user's file
        returns None unless it overrides this.
        """
        return None

    def release(self) -> None:
        """Frees the memory of the reference until it is active again."""


class AdapterOff(Reference):
    """The policy's own base with the adapter switched off. It costs no memory."""

    def attach(self, policy: nn.Module, spec: PolicySpec) -> None:
        _require_adapter(policy, self)

    @contextmanager
    def active(self, policy: nn.Module) -> Iterator[nn.Module]:
        with _require_adapter(policy, self).disable_adapter():
            yield policy

    def initial_spec(self, policy: PolicySpec) -> PolicySpec:
        return replace(policy, adapter=None)


class AdapterCopy(Reference):
    """A frozen copy of the adapter as it was loaded (SFT-LoRA, then DPO-LoRA on top of the same adapter).

    The copy has no dropout.
    """

    can_refresh = True

    def attach(self, policy: nn.Module, spec: PolicySpec) -> None:
        adapted = _require_adapter(policy, self)
        config = copy.deepcopy(adapted.peft_config[POLICY_ADAPTER])
        _refuse_biases(config, spec)
        if hasattr(config, "lora_dropout"):
            config.lora_dropout = 0.0
        config.inference_mode = True
        adapted.add_adapter(REFERENCE_ADAPTER, config)
        adapted.set_adapter(POLICY_ADAPTER)
        self._copy_from(adapted)

    @contextmanager
    def active(self, policy: nn.Module) -> Iterator[nn.Module]:
        adapted = _require_adapter(policy, self)
        adapted.set_adapter(REFERENCE_ADAPTER, inference_mode=True)
        try:
            yield policy
        finally:
            adapted.set_adapter(POLICY_ADAPTER)

    def initial_spec(self, policy: PolicySpec) -> PolicySpec:
        return policy

    def saved_parameters(self, policy: nn.Module) -> list[nn.Parameter]:
        return [copied for _, copied in self._adapter_pairs(policy)]

    @torch.no_grad()
    def _copy_from(self, policy: nn.Module) -> None:
        for own, copied in self._adapter_pairs(policy):
            copied.copy_(own)

    def _adapter_pairs(self, policy: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Each parameter of the policy's adapter with its copy's."""
        parameters = dict(policy.named_parameters())
        copies = {name: _policy_name(name) for name in parameters if REFERENCE_ADAPTER in name.split(".")}
        return [(parameters[own], parameters[copied]) for copied, own in copies.items()]


class ModelReference(Reference):
    """A second model in memory, loaded when it is first active.

    Args:
        model: the reference model, with the policy's tokenizer; None takes the policy's own starting weights,
            and can be refreshed.

    Raises:
        ValueError: from `attach`, if the two models' vocabularies differ.
    """

    def __init__(self, model: PolicySpec | None = None) -> None:
        super().__init__()
        self.spec = model
        self.can_refresh = model is None
        self.model: nn.Module | None = None
        self._initial_spec: PolicySpec | None = None
        self._dtype: torch.dtype | None = None  # the policy's as it was loaded: the Trainer's precision may change it

    def attach(self, policy: nn.Module, spec: PolicySpec) -> None:
        if self.spec is not None:
            _require_same_vocabulary(spec, self.spec)
        self._initial_spec = self.initial_spec(spec)
        self._dtype = _dtype(policy)

    @contextmanager
    def active(self, policy: nn.Module) -> Iterator[nn.Module]:
        yield self._loaded(policy)

    def train(self, mode: bool = True) -> ModelReference:
        """Stays in eval mode: a reference has no dropout."""
        super().train(False)
        return self

    def initial_spec(self, policy: PolicySpec) -> PolicySpec:
        return self.spec or policy

    def release(self) -> None:
        """Frees the model if it can be loaded again, that is, if it was never refreshed."""
        if not self.refreshes:
            self.model = None

    def saved_parameters(self, policy: nn.Module) -> list[nn.Parameter]:
        return [copied for _, copied in self._trained_pairs(policy)] if self.refreshes else []

    @torch.no_grad()
    def _copy_from(self, policy: nn.Module) -> None:
        for own, copied in self._trained_pairs(policy):
            copied.copy_(own)

    def _trained_pairs(self, policy: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Each trained parameter of the policy with its copy's."""
        copies = dict(self._loaded(policy).named_parameters())
        return [(own, copies[name]) for name, own in policy.named_parameters() if own.requires_grad]

    def _loaded(self, policy: nn.Module) -> nn.Module:
        """The model, on the policy's device and in the precision that the Trainer has put the policy in."""
        if self.model is None:
            if self._initial_spec is None:
                raise RuntimeError("ModelReference does not know its model yet: `attach` must run first.")
            # It may be loaded in the middle of a validation, and must not change the random state.
            turn = one_at_a_time() if is_sharded(policy) else nullcontext()
            with torch.inference_mode(False), torch.random.fork_rng(devices=[]), turn:
                model = load_model(self._initial_spec).requires_grad_(False).eval()
                if not is_sharded(policy):  # else only its parts get there
                    nn.Module.to(model, next(policy.parameters()).device)
                if _dtype(policy) != self._dtype:
                    nn.Module.to(model, _dtype(policy))
                shard_like(model, policy)
            self.model = model
        return self.model


def _refuse_biases(config: PeftConfig, spec: PolicySpec) -> None:
    """Refuses trained biases: they are the base's own, so that the reference would be trained along."""
    bias = getattr(config, "bias", "none")
    if bias != "none":
        raise ValueError(
            f"The adapter {spec.adapter!r} trains biases of its base (`bias: {bias}` in its adapter_config.json), and "
            "AdapterCopy cannot keep a frozen copy of those. Set the module's `reference` to ModelReference, a second "
            "model in memory, or merge the adapter into its base and take fresh adapters (`lora`)."
        )


def default_reference(spec: PolicySpec) -> Reference:
    """The reference that equals the policy at the start: a copy of its adapter, its bare base, or a second model."""
    if spec.adapter is not None:
        return AdapterCopy()
    return AdapterOff() if spec.lora is not None else ModelReference()


def _policy_name(name: str) -> str:
    parts = [POLICY_ADAPTER if part == REFERENCE_ADAPTER else part for part in name.split(".")]
    return ".".join(parts)


def _require_adapter(policy: nn.Module, reference: Reference) -> PeftModel:
    with quiet_libraries():
        from peft import PeftModel
    if not isinstance(policy, PeftModel):
        raise ValueError(
            f"{type(reference).__name__} needs a policy with an adapter, but the policy is a bare "
            f"{type(policy).__name__}: set `lora` or `adapter` in the policy, or take `ModelReference`."
        )
    return policy


def _require_same_vocabulary(policy: PolicySpec, reference: PolicySpec) -> None:
    if load_tokenizer(policy).get_vocab() != load_tokenizer(reference).get_vocab():
        raise ValueError(
            f"The reference {reference.model!r} and the policy {policy.model!r} have different vocabularies, so the "
            "same token ids mean different text: take a reference of the same model family."
        )


def _dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the weights that are not quantised."""
    return next(p.dtype for p in model.parameters() if p.dtype.is_floating_point)
