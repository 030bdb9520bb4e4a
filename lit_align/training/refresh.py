"""A callback that moves the reference along with the policy."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class ReferenceRefresh(Callback):
    """Makes the policy's current weights the reference every N optimizer steps.

    Iterated preference optimisation compares with the policy of the iteration before, not with the start. For a
    refresh at each switch of the stage use `BoundaryCallback(refresh_reference=True)`.

    Args:
        every_n_steps: optimizer steps between two refreshes, at least 1. The reference must be of a form that can be
            refreshed: `AdapterCopy` with adapters, otherwise `ModelReference` without a model of its own.

    Raises:
        ValueError: `every_n_steps` is below 1, or, when a fit starts, the reference cannot be refreshed.
    """

    def __init__(self, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1 optimizer step, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._refreshed_at = 0

    @property
    def state_key(self) -> str:
        return "ReferenceRefresh"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            require_refreshable(pl_module, "ReferenceRefresh")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """In a resumed run, does what the run that was stopped had not come to at this step."""
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        """Acts at an optimizer step, once: inside an accumulation `global_step` stands still."""
        step = trainer.global_step
        if step % self.every_n_steps == 0 and step != self._refreshed_at:
            pl_module.refresh_reference()
            self._refreshed_at = step

    def state_dict(self) -> dict[str, int]:
        return {"refreshed_at": self._refreshed_at}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._refreshed_at = state_dict["refreshed_at"]


def require_refreshable(pl_module: Any, who: str) -> None:
    """Refuses a reference that cannot be refreshed, at the start of a fit instead of in its middle.

    Raises:
        ValueError: the module's reference cannot be refreshed.
    """
    reference = pl_module.reference
    if not getattr(reference, "can_refresh", False):
        raise ValueError(
            f"{who} needs a reference that can be refreshed, got {type(reference).__name__}: set the module's "
            "`reference` to AdapterCopy (with adapters) or ModelReference (full fine-tuning)"
        )
