"""The part of the command line that needs a model: Lightning's subcommands and lit-align's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback

# Imported for their names: jsonargparse finds by its short name any class that is imported.
import lit_align.data
import lit_align.judges
import lit_align.losses
import lit_align.policy.reference
import lit_align.report
import lit_align.reward
import lit_align.sampling  # noqa: F401
from lit_align import run_folder
from lit_align.boundary.callback import BoundaryCallback
from lit_align.cli.errors import UsageError
from lit_align.cli.keys import AcceptedKeys, prefer_torch, refuse_unknown_keys
from lit_align.cli.parser import Parser, read_seed, shorten
from lit_align.cli.yaml_files import YAML
from lit_align.console import note
from lit_align.data import AlignmentDataModule
from lit_align.data.trainer_view import LIMITS
from lit_align.ranks import gather_in_turn
from lit_align.report.summary import judge_reports
from lit_align.trainer import AlignmentTrainer
from lit_align.training.hyperparameters import set_hyperparameters
from lit_align.training.module import AlignmentModule

DESCRIPTION = "Preference alignment that measures its stage while it trains. lit-align --help gives an overview."
OF_LIGHTNINGS_COMMANDS = {
    "validate": "Runs the held-out pairs through a model or a checkpoint, and prints their metrics.",
    "test": "Runs the held-out pairs through a model or a checkpoint, with metrics that are logged as test.",
    "predict": "Writes the rewards of the held-out pairs to a file in the run folder.",
}
OF_ONE_FIT = ("ckpt_path", "weights_only")
"""What a command is told of one fit, and the run's configuration does not keep: so that every command takes it."""
OF_POLICIES = ("measure", "precompute", "plan")


class SaveConfig(SaveConfigCallback):
    """Writes the run's whole configuration to `config.yaml` in the run folder, and gives it to the loggers."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        config = self.config.clone()
        for key in OF_ONE_FIT:
            config.pop(key, None)
        set_hyperparameters(pl_module, yaml.safe_load(self.parser.dump(config, skip_unset=False)))
        if stage != "fit":
            return
        path = Path(trainer.default_root_dir) / run_folder.CONFIG
        path.parent.mkdir(parents=True, exist_ok=True)
        self.parser.save(config, str(path), skip_unset=False, overwrite=True, multifile=False)


class AlignmentCLI(LightningCLI):
    """`LightningCLI` over a module that trains on pairs, an `AlignmentDataModule` and a boundary callback.

    Args:
        args: command-line words after the program's name.
    """

    def __init__(self, args: Sequence[str]) -> None:
        parts = self.subcommands()
        if args and args[0] in parts:  # no parser is made for a command that is not run
            only = {args[0]: parts[args[0]]}
            self.subcommands = lambda: only  # type: ignore[method-assign]
        texts = {
            name: {"description": text} for name, text in OF_LIGHTNINGS_COMMANDS.items() if name in self.subcommands()
        }
        super().__init__(
            LightningModule,
            AlignmentDataModule,
            trainer_class=AlignmentTrainer,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_class=Parser,
            parser_kwargs={"prog": "lit-align", "description": DESCRIPTION, "parser_mode": YAML, **texts},
            args=list(args),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        own = {"model", "datamodule"}
        commands = ("measure", "precompute", "plan", "preview")
        return {**LightningCLI.subcommands(), **dict.fromkeys(commands, own)}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything", type=read_seed, default=0, help="seed of all that is random in the run, data included"
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--boundary",
            type=BoundaryCallback | None,
            default=None,
            help="measures the stage and swaps the data source; null trains on one source throughout",
        )
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.set_defaults(
            {
                "model": {
                    "class_path": "lit_align.training.module.AlignmentModule",
                    "init_args": {"loss": {"class_path": "lit_align.losses.DPO"}},
                },
                "data": {"class_path": "lit_align.data.AlignmentDataModule"},
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert isinstance(args, list)
        args = prefer_torch(args)
        if args and args[0] in self._subcommand_parsers:
            accepted = AcceptedKeys.of(self._subcommand_parsers[args[0]])
            accepted.defaults["data"].get("init_args", {}).pop("seed", None)
            settings = refuse_unknown_keys(accepted, args[1:])
            data = settings["data"]
            if not isinstance(data, Mapping):
                raise UsageError(f"`data` takes keys, such as `train: rows.jsonl`, not the value {data!r}")
            if "seed" in data.get("init_args", {}):
                raise UsageError("`data.seed` follows `seed_everything`: set that one")
        self.config = parser.parse_args(args)

    def instantiate_classes(self) -> None:
        """Builds the objects, and shortens the parser's long message about unions if a class refuses its arguments."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            if "Does not validate" not in str(error):
                raise
            raise ValueError(shorten(str(error))) from error

    def _run_subcommand(self, subcommand: str) -> None:
        """As Lightning's, but refuses a module that the command cannot use, and a run without any pair."""
        if subcommand in OF_POLICIES and not isinstance(self.model, AlignmentModule):
            raise UsageError(
                f"`{subcommand}` is for policies, and the config's model is a {type(self.model).__name__}: give a "
                "config whose model is an AlignmentModule"
            )
        if subcommand in LIMITS and not getattr(self.trainer, LIMITS[subcommand]):
            raise UsageError(
                f"the config's trainer.{LIMITS[subcommand]} is 0, so `{subcommand}` would take none of the held-out "
                f"pairs: --trainer.{LIMITS[subcommand]} 1.0 takes all of them"
            )
        super()._run_subcommand(subcommand)
        if subcommand != "fit" and self.trainer.is_global_zero:  # the summary of a fit has them
            for line in judge_reports(self.trainer):
                note(line)

    def predict(self, **kwargs: Any) -> None:
        """Runs the prediction and writes a line with row and rewards for each held-out pair, in the data's order."""
        batches: list[Any] = self.trainer.predict(**kwargs) or []
        rows: list[dict[str, Any]] = []
        for batch in batches:
            rows += [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        rows = gather_in_turn(rows)
        if self.trainer.is_global_zero:
            self._keep_predictions(rows, Path(self.trainer.default_root_dir))

    def _keep_predictions(self, rewards: Sequence[Mapping[str, Any]], folder: Path) -> None:
        trace = self.datamodule.val_rows
        rows = [{**row.as_dict(), **of_pair} for row, of_pair in zip(trace.of_pairs, rewards, strict=False)]
        run_folder.write_jsonl(folder / run_folder.PREDICTIONS, rows)
        run_folder.write_jsonl(folder / run_folder.DROPPED, trace.dropped)
        print(f"Rewards of {len(rows)} pairs are in {folder / run_folder.PREDICTIONS}")
        if trace.dropped:
            print(f"{len(trace.dropped)} held-out rows without them are in {folder / run_folder.DROPPED}, with reasons")

    def _parse_ckpt_path(self) -> None:
        """Does nothing: the configuration and the command line count, not the settings in a checkpoint."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        boundary: Callback | None = self._get(self.config_init, "boundary")
        return self._instantiate_trainer(config, [] if boundary is None else [boundary])
