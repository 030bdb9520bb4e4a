"""Lightning's Trainer with the defaults of an alignment run, and `measure`, `precompute`, `plan` and `preview`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import TrainerFn

from lit_align import run_folder
from lit_align.boundary.callback import BoundaryCallback
from lit_align.checks import require_at_least_1, require_not_negative
from lit_align.clock import CLOCK
from lit_align.console import note
from lit_align.report.measurement import readable, result_record
from lit_align.run_parts import find_callback, is_trial, process_rank
from lit_align.steady import steady_output
from lit_align.trainer_defaults import all_callbacks, all_loggers, epochs_by_default, shows_progress
from lit_align.training.checkpoint_paths import CheckpointPaths, checkpoint_folders, last_checkpoint
from lit_align.training.interruption import Interruptions
from lit_align.training.rank_watch import ended_with_others
from lit_align.training.strategies import check_strategy

DEFAULT_ROOT = "runs/default"


class AlignmentTrainer(Trainer):
    """A `Trainer` that keeps a run in one folder.

    `default_root_dir` is the run folder: `boundary.jsonl`, `samples.jsonl`, `summary.json`, `csv/`,
    `tensorboard/`, `checkpoints/` and, from the command line, `config.yaml`. A fresh fit moves what an earlier
    run left there to `previous/N/`; a resumed one goes on in it. One fit at a time has the folder.

    Args:
        default_root_dir: the run folder; None means `runs/default`.
        max_steps: optimizer steps to train, -1 for no limit.
        max_epochs: passes over the training pairs; None means 1, or no limit where `max_steps` or `max_time` is given.
        min_epochs: passes over the training pairs before a callback may stop the run.
        max_time: how long to train, as DD:HH:MM:SS or by name, such as `{hours: 2}`; None means no limit.
        accumulate_grad_batches: micro-batches an optimizer step.
        strategy: "auto", "ddp", or "fsdp2" (:class:`~lit_align.training.sharded.ShardedStrategy`) for a model that is
            spread over the devices; FSDP1 and DeepSpeed are refused.
        barebones: nothing that takes time, to measure raw speed: no logger, checkpoint and progress bar.
        logger: None means a CSV and a TensorBoard logger in the run folder, False means none; beside any other there
            is a CSV logger in the run folder, too.
        callbacks: added to a checkpoint, a progress bar and a summary, unless one of that kind is among them.
        log_every_n_steps: optimizer steps between two logged rows; None means 1.
        gradient_clip_val: largest norm of the gradient; None does not clip.
        num_sanity_val_steps: validation batches to try before training.
        use_distributed_sampler: leave it off, the data module shards by rank itself.
        enable_model_summary: prints Lightning's table of submodules at the start.
        enable_progress_bar: shows the progress bar; None does, but with `barebones`.
        enable_checkpointing: keeps checkpoints; None does, but with `barebones`.
        kwargs: all other arguments of `lightning.pytorch.Trainer`.

    Raises:
        ValueError: the strategy is neither of one device, nor plain DDP, nor `fsdp2`.

    Example:
        >>> trainer = AlignmentTrainer(max_steps=10, default_root_dir="/tmp/run", accelerator="cpu", logger=False)
        >>> trainer.checkpoint_callback.dirpath
        '/tmp/run/checkpoints'
    """

    def __init__(
        self,
        *,
        default_root_dir: str | Path | None = None,
        max_steps: int = -1,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_time: dict[str, int] | str | timedelta | None = None,  # in this order: "00:02:00:00" is no timedelta
        accumulate_grad_batches: int = 1,
        strategy: str | Strategy = "auto",
        barebones: bool = False,
        logger: Logger | list[Logger] | bool | None = None,
        callbacks: Callback | list[Callback] | None = None,
        log_every_n_steps: int | None = None,
        gradient_clip_val: float | None = 1.0,
        num_sanity_val_steps: int = 0,
        use_distributed_sampler: bool = False,
        enable_model_summary: bool = False,
        enable_progress_bar: bool | None = None,
        enable_checkpointing: bool | None = None,
        **kwargs: Any,
    ) -> None:
        # What is read here is an argument of its own: of what is read out of `kwargs` the command line knows no type.
        check_strategy(strategy)
        require_at_least_1(accumulate_grad_batches=accumulate_grad_batches)
        require_not_negative(
            min_epochs=min_epochs, gradient_clip_val=gradient_clip_val, log_every_n_steps=log_every_n_steps
        )
        root = str(default_root_dir or DEFAULT_ROOT)
        present = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or [])
        checkpointing = not barebones if enable_checkpointing is None else enable_checkpointing
        bar = shows_progress(present, barebones) if enable_progress_bar is None else enable_progress_bar
        if max_epochs is None:
            max_epochs = epochs_by_default(present, max_steps, max_time, min_epochs)
        if log_every_n_steps is None:
            log_every_n_steps = 0 if barebones else 1
        super().__init__(
            default_root_dir=root,
            max_steps=max_steps,
            max_epochs=max_epochs,
            min_epochs=min_epochs,
            max_time=max_time,
            accumulate_grad_batches=accumulate_grad_batches,
            strategy=strategy,
            barebones=barebones,
            logger=all_loggers(logger, barebones, root),
            callbacks=all_callbacks(present, checkpointing, bar, Path(root)),
            log_every_n_steps=log_every_n_steps,
            gradient_clip_val=gradient_clip_val,
            num_sanity_val_steps=num_sanity_val_steps,
            use_distributed_sampler=use_distributed_sampler,
            enable_model_summary=enable_model_summary,
            enable_progress_bar=bar,
            enable_checkpointing=checkpointing,
            **kwargs,
        )
        require_at_least_1(check_val_every_n_epoch=self.check_val_every_n_epoch)
        self._checkpoint_connector = CheckpointPaths(self)
        self._signal_connector = Interruptions(self)
        self._in_place_of_stage: Callable[[], dict[str, Any]] | None = None  # set while `measure` or `precompute` runs
        self._result_in_place: dict[str, Any] = {}
        self._chose_device = kwargs.get("accelerator", "auto") == "auto"

    @property
    def run_folder(self) -> Path:
        """Where this run writes."""
        return Path(self.default_root_dir)

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Trains the policy.

        Args:
            model: the alignment module.
            train_dataloaders: instead of a data module.
            val_dataloaders: instead of a data module.
            datamodule: the alignment data module.
            ckpt_path: a checkpoint to go on from; "last" is the newest of the run folder, and starts afresh
                where there is none.
            weights_only: see `Trainer.fit`.

        Raises:
            RunFolderInUse: another fit is under way in the run folder.
        """
        CLOCK.restart()
        self._say_if_without_gpu()
        locked = nullcontext() if process_rank() else run_folder.locked(self.run_folder)
        with steady_output(), locked, ended_with_others(self):
            if ckpt_path == "last":
                ckpt_path = self.last_checkpoint(to_resume=True)
                if ckpt_path is None and process_rank() == 0:
                    note(f"There is no checkpoint in {self.run_folder}: the run begins at its first step.")
            # Only by rank 0, and before the loggers choose their version numbers in this folder.
            stays = process_rank() != 0 or ckpt_path is not None or is_trial(self)
            with nullcontext() if stays else run_folder.earlier_put_aside(self.run_folder, self._has_trained):
                super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)

    def _say_if_without_gpu(self) -> None:
        if self._chose_device and isinstance(self.accelerator, CPUAccelerator) and process_rank() == 0:
            note("No GPU was found: this runs on the CPU (trainer.accelerator is auto).")
        self._chose_device = False  # it is said once

    def _has_trained(self) -> bool:
        return self.fit_loop.epoch_loop.batch_progress.total.ready > 0

    def measure(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        output: str | None = None,
        max_prompts: int | None = None,
        sequential: bool | None = None,
        alpha: float | None = None,
        graded: bool | None = None,
        seed: int | None = None,
        ckpt_path: str | Path | None = None,
    ) -> dict[str, Any]:
        """Tells which stage a model is in, without training it.

        Samples answers from the policy, lets the judge compare them with the data's own candidates, and reports
        the boundary score as one line of `boundary.jsonl`, without `step`.

        Args:
            model: the alignment module.
            datamodule: the alignment data module, with a judge and a sampler.
            output: JSON file to write.
            max_prompts: prompts to measure on at most; None means as the boundary callback says.
            sequential: stop once it is decided, or take all prompts; None means as the boundary callback says.
            alpha: the chance of error, in (0, 1); None means as the boundary callback says.
            graded: go by how much better an answer is, not by votes; None means as the boundary callback says.
            seed: joins the run's seed, for other prompts and other answers.
            ckpt_path: a checkpoint to measure instead of the starting policy.

        Returns:
            What was written.
        """
        boundary = (find_callback(self, BoundaryCallback) or BoundaryCallback()).with_settings(
            max_prompts=max_prompts, sequential=sequential, alpha=alpha, graded=graded, draw_seed=seed
        )

        def measure() -> dict[str, Any]:
            boundary.say_what_is_short(self)
            result = boundary.measure_isolated(self, self.lightning_module).result
            return result_record(result, "measured on held-out prompts", boundary.sides)

        record = self._run_in_place(measure, model, datamodule, ckpt_path)
        self._tell(readable(record), record, output)
        return record

    def precompute(self, model: LightningModule, datamodule: LightningDataModule) -> dict[str, Any]:
        """Computes the reference's log-probs of all static pairs, held-out ones included, and stores them for `fit`.

        What is stored already is not computed again, so it may be interrupted and run again.

        Args:
            model: the alignment module.
            datamodule: the alignment data module.

        Returns:
            `pairs`, `found`, `computed`, `seconds` and `folder`.

        Raises:
            ValueError: where there is nothing to store: the loss needs no reference, or it is not to be kept.
        """
        data = cast(Any, datamodule)
        filled = self._run_in_place(lambda: data.stream.reference.fill_all(), model, datamodule)
        if not filled:
            raise ValueError(
                "there are no reference log-probs to store: the loss needs no reference, or the data's "
                "`reference_cache` is null, or the reference cannot be stored (a warning above says why)"
            )
        return filled

    def plan(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        card_gib: float | None = None,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        output: str | None = None,
    ) -> dict[str, Any]:
        """Tells what a fit needs of memory, only from the model's config: no weights and no data are read.

        Args:
            model: the alignment module.
            datamodule: the alignment data module.
            card_gib: memory of the card in GiB; None takes the GPU's that is here, if any.
            prompt_tokens: length of the prompts; None takes the data's `max_prompt_tokens`.
            completion_tokens: length of the completions; None takes the data's `max_completion_tokens`.
            output: JSON file to write.

        Returns:
            What was written: sizes in bytes, see `docs/plan.md`.
        """
        from lit_align.plan.run import plan_run  # it imports much that no other subcommand needs

        planned = plan_run(self, cast(Any, model), cast(Any, datamodule), card_gib, prompt_tokens, completion_tokens)
        self._tell(planned.text, planned.record, output)
        return planned.record

    def preview(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        rows: int = 3,
        row: int | None = None,
        held_out: bool = False,
        judge: bool | None = None,
    ) -> None:
        """Shows rows as the model gets them, beside the chat template's own rendering. No model is loaded.

        Args:
            model: the alignment module.
            datamodule: the alignment data module.
            rows: how many rows, from the front of the data.
            row: the number of one row to show in place of them, from 1.
            held_out: rows of the held-out data in place of the training data.
            judge: score candidates with the data's judge; null does where that loads no model and asks no server.
        """
        from lit_align.preview import preview_run

        self.strategy.connect(model)  # the data ask the Trainer's module for what decides the tokens
        datamodule.trainer = self
        for line in preview_run(model, cast(Any, datamodule), rows, row, held_out, judge):
            if self.is_global_zero:
                note(line)

    def _run_in_place(
        self,
        work: Callable[[], dict[str, Any]],
        model: LightningModule,
        datamodule: LightningDataModule,
        ckpt_path: str | Path | None = None,
    ) -> dict[str, Any]:
        """Sets everything up as for a validation and does `work` in its place."""
        self._say_if_without_gpu()
        self._in_place_of_stage = work
        try:
            self.validate(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False)
        finally:
            self._in_place_of_stage = None
        return self._result_in_place

    def _run_stage(self) -> Any:
        """As Lightning's, or what runs in place of its loops."""
        if self._in_place_of_stage is None:
            return self._run_loops()
        self._result_in_place = self._in_place_of_stage()
        return []

    @property
    def works_in_place(self) -> bool:
        """Whether `measure` or another command of lit-align's own runs in place of a validation."""
        return self._in_place_of_stage is not None

    def _run_loops(self) -> Any:
        """As Lightning's; a resumed fit that has taken all its steps does what its end had not come to.

        Each callback that has a method `on_resume_at_end(trainer, pl_module)` is asked to.
        """
        taken = self.fit_loop.epoch_loop.batch_progress.total.ready
        result = super()._run_stage()
        resumed = self.state.fn == TrainerFn.FITTING and self.ckpt_path is not None
        if resumed and taken == self.fit_loop.epoch_loop.batch_progress.total.ready:
            note(f"Nothing is left to train: the run has taken its {self.global_step} steps. What is missing is done.")
            for callback in cast(Any, self).callbacks:
                if hasattr(callback, "on_resume_at_end"):
                    callback.on_resume_at_end(self, self.lightning_module)
        return result

    def _tell(self, text: str, record: dict[str, Any], output: str | None) -> None:
        """Prints what a command has to say, and writes its record if a file is named."""
        if self.is_global_zero:
            note(text)
            if output is not None:
                run_folder.write_json(Path(output), record)

    def last_checkpoint(self, to_resume: bool = False) -> Path | None:
        """The checkpoint of the latest step in the run folder and where the checkpoint callbacks write, if any.

        Args:
            to_resume: leaves out files that only hold weights.
        """
        return last_checkpoint(
            checkpoint_folders(self) | {(self.run_folder / run_folder.CHECKPOINTS).absolute()}, to_resume
        )
