"""The end of a run in a few lines, and the same as `summary.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import CSVLogger, Logger

from lit_align import run_folder
from lit_align.boundary.callback import BoundaryCallback
from lit_align.boundary.meaning import SIDES
from lit_align.boundary.result import Decision
from lit_align.clock import CLOCK
from lit_align.escape import escape
from lit_align.judges import Judge
from lit_align.report.crossing import crossing, for_the_next_run
from lit_align.report.environment import describe_environment
from lit_align.report.text import render
from lit_align.report.win_rate import WinRateAtStep, WinRateCallback
from lit_align.run_parts import callbacks_of, datamodule_of, find_callback, is_trial
from lit_align.trained.loading import holds_model, loading_lines
from lit_align.training.checkpoint import AlignmentCheckpoint
from lit_align.training.checkpoint_paths import checkpoint_folders, last_checkpoint
from lit_align.training.module import AlignmentModule
from lit_align.training.step_watch import StepWatch

TRAINING = "training"


class RunSummary(Callback):
    """Writes `summary.json` into the run folder at each decision and at the end of a fit, where it prints it as text.

    It holds the run's state ("running", "finished" or "stopped"), the decisions, whether the run crossed into
    preference fine-tuning, what the watch said, what the last measurement means for the next run, the win rate against
    the start, the rows that were left out, the on-policy rounds, what judges have to report, the last metrics, where
    the time went, and the versions of what ran. After an interruption it says how to go on.

    Args:
        show: prints the text; the file is written in any case.
    """

    def __init__(self, show: bool = True) -> None:
        self.show = show
        self.summary: dict[str, Any] = {}
        self._spent_before: dict[str, float] = {}  # by activity, before a resume
        self._seconds_before = 0.0
        self._rounds: list[dict[str, Any]] = []
        self._metrics: dict[str, float] = {}  # the last value of each, those from before a resume included
        self._told = 0
        self._error: str | None = None
        self._trained = False

    @property
    def state_key(self) -> str:
        return "RunSummary"

    def state_dict(self) -> dict[str, Any]:
        return {
            "seconds": self._total,
            "activities": self._activities(),
            "rounds": self._rounds,
            "metrics": self._metrics,
        }

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes the metrics of this very step along, for a resume that has nothing left to train."""
        self._update_metrics(trainer)
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is not None:  # a file of weights alone has none
            state["metrics"] = dict(self._metrics)

    def _update_metrics(self, trainer: Trainer) -> None:
        self._metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds_before = state_dict["seconds"]
        self._spent_before = dict(state_dict.get("activities", {}))
        self._rounds = list(state_dict["rounds"])
        self._metrics = dict(state_dict.get("metrics", {}))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.summary = {}
        self._told = 0
        self._error = None
        self._trained = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What came before is loading: the data are read, the model is there."""
        CLOCK.add("loading", CLOCK.unnamed)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, "running")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._trained = True
        new_rounds = getattr(datamodule_of(trainer), "new_rounds", ())
        self._rounds += [{"step": trainer.global_step, **stats} for stats in new_rounds]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Writes the file after a decision, a win rate and an alarm."""
        results = len(_history(trainer)) + len(_win_rates(trainer)) + len(_alarms(trainer))
        if results > self._told:
            self._told = results
            self._write(trainer, "running")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        CLOCK.begin("validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        CLOCK.end()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """After all that others write at the end of a fit."""
        if stage == "fit" and self._write(trainer, "finished") and self.show:
            print(escape(render(self.summary, self._answers(trainer))), flush=True)
            if _time_is_up(trainer):
                more = "A longer time limit is needed for that, since it counts the time of all attempts."
                print(escape(f"The time limit ended the run. {_name_checkpoint(trainer)} {more}"), flush=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Says where the last checkpoint is and how to go on."""
        for callback in trainer.checkpoint_callbacks:  # their own turn comes after this one
            if isinstance(callback, AlignmentCheckpoint):
                callback.save_interrupted(trainer, exception)
        if self.summary:
            self._error = shorten(f"{type(exception).__name__}: {exception}".rstrip(": "), 400, placeholder=" ...")
            self._write(trainer, "stopped")
        if trainer.is_global_zero and self._trained:
            stopped = f"Stopped at step {trainer.global_step}. {_name_checkpoint(trainer)}"
            print("", *map(escape, (stopped, *judge_reports(trainer))), sep="\n", flush=True)

    def _write(self, trainer: Trainer, state: str) -> bool:
        """Writes the file; not on other ranks than 0, nor in a trial."""
        if not trainer.is_global_zero or is_trial(trainer):
            return False
        self.summary = self.collect(trainer, state)
        run_folder.write_json(_root(trainer) / run_folder.SUMMARY, self.summary)
        return True

    def collect(self, trainer: Trainer, state: str) -> dict[str, Any]:
        """What `summary.json` would hold now, in a run that is "running", "finished" or "stopped"."""
        self._update_metrics(trainer)
        history = _history(trainer)
        has_policy = isinstance(trainer.lightning_module, AlignmentModule)
        decisions = [decision.record() for decision in history]
        win_rate = find_callback(trainer, WinRateCallback)
        watch = getattr(trainer.lightning_module, "step_watch", None)
        win_rates = [asdict(result) for result in _win_rates(trainer)]
        return {
            "state": state,
            "error": self._error,
            "steps": trainer.global_step,
            "max_steps": trainer.max_steps if trainer.max_steps > 0 else None,
            "steps_left_out": watch.skipped if isinstance(watch, StepWatch) else 0,
            "crossing": crossing(history) if has_policy else None,
            "next": for_the_next_run(history, _sides(trainer)) if has_policy else None,
            "decisions": decisions,
            "alarms": _alarms(trainer),
            "win_rate": win_rates[-1] if win_rates else None,
            "win_rates": win_rates,
            "rows": dict(getattr(datamodule_of(trainer), "counts", {}) or {}),
            "rounds": self._rounds,
            "judges": judge_reports(trainer),
            "metrics": self._metrics,
            "seconds": self._time(decisions, win_rate.seconds if win_rate is not None else 0.0),
            "activities": self._activities(),
            "environment": describe_environment(trainer),
            "outputs": _outputs(trainer),
            "load": _loading(trainer),
        }

    def _time(self, decisions: list[dict[str, Any]], win_rate: float) -> dict[str, float]:
        """Wall seconds by activity; training is what is left."""
        spent = {
            "measuring": sum(decision["seconds"] or 0.0 for decision in decisions),
            "on_policy_rounds": sum(map(_seconds_of_round, self._rounds)),
            "validation": _sum_of(self._spent(), "validation"),
            "win_rate": win_rate,
            "loading": _sum_of(self._spent(), "loading"),
        }
        return {"total": self._total, "training": max(0.0, self._total - sum(spent.values())), **spent}

    @property
    def _total(self) -> float:
        return self._seconds_before + CLOCK.elapsed

    def _spent(self) -> dict[str, float]:
        """Wall seconds by activity, each without those inside it, without training."""
        spent = {name: seconds for name, seconds in self._spent_before.items() if name != TRAINING}
        for name, seconds in CLOCK.seconds.items():
            spent[name] = spent.get(name, 0.0) + seconds
        return spent

    def _activities(self) -> dict[str, float]:
        """As :meth:`_spent`, with training, which is what is left."""
        spent = self._spent()
        return {TRAINING: max(0.0, self._total - sum(spent.values())), **spent}

    def _answers(self, trainer: Trainer) -> list[dict[str, Any]]:
        win_rate = find_callback(trainer, WinRateCallback)
        return [] if win_rate is None else win_rate.answers[: win_rate.samples_to_show]


def _sum_of(spent: Mapping[str, float], activity: str) -> float:
    """The time of an activity and of all inside it."""
    return sum(seconds for path, seconds in spent.items() if path.split("/")[0] == activity)


def _seconds_of_round(stats: dict[str, Any]) -> float:
    return sum(stats.get(f"{part}_seconds", 0.0) for part in ("sample", "judge", "reference"))


def _name_checkpoint(trainer: Trainer) -> str:
    """Where the last checkpoint is, and how to go on from it."""
    last = last_checkpoint(checkpoint_folders(trainer))
    if last is None:
        return "There is no checkpoint yet: the run starts afresh next time."
    step = next((c.saved_step for c in trainer.checkpoint_callbacks if isinstance(c, AlignmentCheckpoint)), None)
    of_step = "" if step is None else f" of step {step}"
    return f"The last checkpoint{of_step} is {last}: the same command with --ckpt_path last goes on from there."


def _time_is_up(trainer: Trainer) -> bool:
    """Whether `max_time` or a Timer has ended the fit."""
    timer = find_callback(trainer, Timer)
    left = None if timer is None else timer.time_remaining()
    return left is not None and left <= 0


def _root(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir)


def _history(trainer: Trainer) -> list[Decision]:
    boundary = find_callback(trainer, BoundaryCallback)
    return [] if boundary is None else list(boundary.history)


def _win_rates(trainer: Trainer) -> list[WinRateAtStep]:
    win_rate = find_callback(trainer, WinRateCallback)
    return [] if win_rate is None else win_rate.results


def _alarms(trainer: Trainer) -> list[dict[str, Any]]:
    """What callbacks that watch a run have to say."""
    return [asdict(alarm) for callback in callbacks_of(trainer) for alarm in getattr(callback, "alarms", ())]


def _sides(trainer: Trainer) -> tuple[str, str]:
    boundary = find_callback(trainer, BoundaryCallback)
    return SIDES if boundary is None else boundary.sides


def judge_reports(trainer: Trainer) -> list[str]:
    """The reports of the judges of the data and of the callbacks, in lines; under DDP those of this process."""
    owners = [datamodule_of(trainer), *callbacks_of(trainer)]
    judges = [judge for owner in owners if isinstance(judge := getattr(owner, "judge", None), Judge)]
    reports = {id(judge): judge.report() or "" for judge in judges}  # once, where it is the same
    return "\n".join(filter(None, reports.values())).splitlines()


def _outputs(trainer: Trainer) -> dict[str, str]:
    """The files that a reader would open next, by their kind."""
    root = _root(trainer)
    files = {
        "run folder": root,
        "report": root / run_folder.REPORT,
        "model": root / run_folder.MODEL,
        "best model": root / run_folder.BEST_MODEL,
        "decisions": root / run_folder.DECISIONS,
        "sampled answers": root / run_folder.SAMPLES,
        "before and after": root / run_folder.ANSWERS,
        "reward model": root / run_folder.REWARD_MODEL,
        "metrics": next((f for logger in trainer.loggers if (f := _csv(logger)) is not None), root / "missing"),
        "tensorboard": root / run_folder.TENSORBOARD_LOGS,
        "checkpoint": root / run_folder.CHECKPOINTS / "last.ckpt",
    }
    return {name: str(path) for name, path in files.items() if path.exists()}


def _loading(trainer: Trainer) -> list[str]:
    """The lines of Python that load the model that the run left, if it left one."""
    folder = _root(trainer) / run_folder.MODEL
    return loading_lines(folder) if holds_model(folder) else []


def _csv(logger: Logger) -> Path | None:
    return Path(logger.log_dir, "metrics.csv") if isinstance(logger, CSVLogger) else None
