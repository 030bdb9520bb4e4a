"""RewardModule: a judge of one's own, trained on the pairs that it is to decide."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lit_align import run_folder
from lit_align.batch import PairBatch
from lit_align.boundary.callback import BoundaryCallback
from lit_align.console import note
from lit_align.judges.inputs import has_segments
from lit_align.judges.quality import quality_of
from lit_align.judges.quality_record import JudgeQuality, Share
from lit_align.policy.sharding import outer_gathered, whole_on_first
from lit_align.policy.spec import PolicySpec
from lit_align.ranks import gather_in_turn
from lit_align.report.judge import readable
from lit_align.reward.encode import RewardEncoder
from lit_align.reward.load import load_reward_model, load_reward_tokenizer, save_reward_model
from lit_align.reward.loss import bradley_terry_loss
from lit_align.reward.rows import classifier_rows
from lit_align.run_parts import datamodule_of, find_callback, is_trial
from lit_align.training.pair_module import PairModule, pair_values

Verdict = tuple[float, int, int, bytes]
"""P(chosen wins), the tokens of the chosen and of the rejected answer, and the prompt."""


class RewardModule(PairModule):
    """Trains a Bradley-Terry reward model on preference pairs and saves it for `RewardModelJudge`.

    At the end of a fit `reward_model/` in the run folder holds the model with its tokenizer, and
    `reward_quality.json` the judge's quality at the last validation. The data are those of
    :class:`lit_align.reward.RewardDataModule`.

    Args:
        base: the model under the reward: any decoder or encoder of which transformers has a sequence classifier. Its
            head is fresh unless the files hold one with one output. `adapter` is not taken.
        margin_weight: rewards of a pair should differ by this much for each unit of difference between the scores of
            its answers in the data (Eq. 2 of arXiv:2307.09288), at least 0; above 0 every pair needs scores.
        centring: weight of (chosen + rejected reward)^2 in the loss, at least 0; 0.01 keeps rewards around 0.
        kwargs: `optimizer`, `lr_scheduler` and `on_nonfinite`, see :class:`~lit_align.training.pair_module.PairModule`.
    """

    def __init__(
        self,
        base: PolicySpec,
        margin_weight: float = 0.0,
        centring: float = 0.0,
        **kwargs: Any,
    ) -> None:
        for key, weight in (("margin_weight", margin_weight), ("centring", centring)):
            if not weight >= 0:
                raise ValueError(f"expected {key} to be at least 0, got {weight}")
        super().__init__(**kwargs)
        self.spec = base
        self.margin_weight = margin_weight
        self.centring = centring
        self.model: nn.Module | None = None
        self.quality: JudgeQuality | None = None
        self._verdicts: list[Verdict] = []

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer, loaded when first asked for, without the model."""
        return load_reward_tokenizer(self.spec)

    def configure_model(self) -> None:
        if self.model is None:
            self.model = self.load_and_spread(lambda: load_reward_model(self.spec))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if find_callback(self.trainer, BoundaryCallback) is not None:
            raise ValueError("a reward model has no stage to measure: set `boundary` to null for this run")
        data: Any = datamodule_of(self.trainer)
        if data is not None and not isinstance(getattr(data, "encoder", None), RewardEncoder):
            raise ValueError(
                f"a reward model reads prompt and answer in one piece, and {type(data).__name__} tokenises them apart: "
                "set the data's class_path to lit_align.reward.RewardDataModule, which takes the same arguments"
            )

    # ------------------------------------------------------------------ steps

    def rewards(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Rewards of the chosen and of the rejected answers, each [B] float32."""
        if self.model is None:
            raise RuntimeError("The model is not loaded yet: a Trainer calls `configure_model`, or call it yourself.")
        tokenizer: Any = self.tokenizer
        pad_id = int(tokenizer.pad_token_id)
        # A decoder's score is read at the last token that is not this one.
        config: Any = self.model.config
        config.get_text_config().pad_token_id = pad_id
        rows = classifier_rows(batch, pad_id, has_segments(tokenizer))
        with outer_gathered(self.model):  # gives them up after a pass without a backward
            scores = self.model(**rows).logits[:, 0].float()
        chosen, rejected = scores.chunk(2)
        return chosen, rejected

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        chosen, rejected = self.rewards(batch)
        losses = self._losses(chosen, rejected, batch)
        self.log_training(batch, _values(losses, chosen, rejected))
        return losses.mean()

    def settings(self) -> dict[str, Any]:
        """See :meth:`PairModule.settings`."""
        return {"base": self.spec, "margin_weight": self.margin_weight, "centring": self.centring}

    def evaluate_pairs(self, batch: PairBatch) -> dict[str, Tensor]:
        """See :meth:`PairModule.evaluate_pairs`."""
        chosen, rejected = self.rewards(batch)
        self._verdicts += _verdicts(batch, chosen - rejected)
        return _values(self._losses(chosen, rejected, batch), chosen, rejected)

    def _losses(self, chosen: Tensor, rejected: Tensor, batch: PairBatch) -> Tensor:
        if self.margin_weight == 0:
            return bradley_terry_loss(chosen, rejected, centring=self.centring)
        if bool(batch.margin.isnan().any()):
            raise ValueError(
                "margin_weight is above 0, which needs the scores of both answers of every pair, and a pair has none: "
                "add them to its row (`chosen_score` and `rejected_score`), or set margin_weight to 0"
            )
        return bradley_terry_loss(chosen, rejected, self.margin_weight * batch.margin, self.centring)

    # ------------------------------------------------------------------ quality

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._verdicts = []

    def end_evaluation(self, prefix: str) -> None:
        """See :meth:`PairModule.end_evaluation`."""
        super().end_evaluation(prefix)
        self._measure(prefix)

    def on_validation_end(self) -> None:
        if self.trainer.state.fn == TrainerFn.VALIDATING:  # within a fit its end says it
            self._show()
        elif self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self._keep_quality()

    def on_test_end(self) -> None:
        self._show()

    def _measure(self, prefix: str) -> None:
        verdicts = gather_in_turn(self._verdicts)
        if self.trainer.sanity_checking or not verdicts:
            return
        wins, chosen, rejected, prompts = zip(*verdicts, strict=True)
        lengths = list(zip(chosen, rejected, strict=True))
        self.quality = quality_of(f"reward model on {self.spec.model}", wins, lengths, groups=prompts)
        self._log_shares(prefix, accuracy=self.quality.accuracy, longer_rule=self.quality.length.longer_rule)
        measured = self.quality.calibration
        if measured is not None:
            errors = {f"{prefix}calibration_error": measured.error, f"{prefix}brier": measured.brier}
            self.log_dict(errors, sync_dist=True)

    def _log_shares(self, prefix: str, **shares: Share) -> None:
        for name, share in shares.items():
            if share.value is not None:
                ends = {f"{prefix}{name}_low": share.low, f"{prefix}{name}_high": share.high}
                self.log_dict({prefix + name: share.value, **ends}, sync_dist=True)

    def _keep_quality(self) -> None:
        """At once, so that no kill between the last validation and the end loses it."""
        if self.quality is not None and self.trainer.is_global_zero and not is_trial(self.trainer):
            record = {"step": self.trainer.global_step, **asdict(self.quality)}
            run_folder.write_json(Path(self.trainer.default_root_dir) / run_folder.REWARD_QUALITY, record)

    def _show(self) -> None:
        if self.quality is not None and self.trainer.is_global_zero:
            note(readable(self.quality, "tokens"))

    # ------------------------------------------------------------------ the model that was made

    def save(self, folder: str | Path) -> None:
        """Writes the model and its tokenizer so that `RewardModelJudge(folder)` scores as this module does.

        Adapters are merged in float32 into the base as it was before quantisation, and the file is float32.

        Args:
            folder: is replaced where it exists. The first process writes it; all of them call this.
        """
        self.configure_model()
        assert self.model is not None
        with whole_on_first(self.model, trained_only=self.spec.lora is not None):
            if self.global_rank == 0:
                save_reward_model(self.model, self.spec, self.tokenizer, Path(folder))

    def on_fit_end(self) -> None:
        """Also where a resumed run had nothing left to train: a kill after the last step loses no model."""
        if is_trial(self.trainer):
            return
        root = Path(self.trainer.default_root_dir)
        folder = root / run_folder.REWARD_MODEL
        self.save(folder)
        self._show()
        if self.trainer.is_global_zero:
            note(f"The reward model is in {folder}: RewardModelJudge takes it as its `model`.")


def _values(losses: Tensor, chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """The logged values of a step, [B] by name; a tie is half right."""
    right = 0.5 * ((chosen > rejected).float() + (chosen >= rejected).float())
    return {**pair_values(losses, chosen, rejected, right), "rewards/mean": (chosen + rejected) / 2}


def _verdicts(batch: PairBatch, differences: Tensor) -> list[Verdict]:
    """Those of the pairs that count."""
    wins, chosen, rejected = (
        batch.only_counted(value).tolist()
        for value in (differences.sigmoid(), batch.chosen.lengths, batch.rejected.lengths)
    )
    ids = batch.only_counted(batch.prompt.ids).cpu()
    masks = batch.only_counted(batch.prompt.mask).cpu()
    prompts = [row[mask].numpy().tobytes() for row, mask in zip(ids, masks, strict=True)]
    return list(zip(wins, chosen, rejected, prompts, strict=True))
