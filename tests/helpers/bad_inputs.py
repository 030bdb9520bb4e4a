# ruff: noqa: E501
"""Inputs that are wrong, by kind: what a user types or has in a file, and what the answer must say."""

from __future__ import annotations

import gzip
import io
import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

CONFIG = """
trainer:
  accelerator: cpu
  max_steps: 1
  default_root_dir: run
  logger: false
  enable_progress_bar: false
model:
  policy:
    model: MODEL
    lora: {r: 2}
  optimizer:
    class_path: torch.optim.AdamW
    init_args: {lr: 1.0e-3}
data:
  train: rows.jsonl
  reference_cache: null
  batch_size: 2
"""
RULES = """
from lit_align.data import PairSelector

def longest(prompt, candidates, row):
    return [len(text) for text in candidates]
def none(prompt, candidates, row):
    return None
def words(prompt, candidates, row):
    return ["good" for text in candidates]
def fewer(prompt, candidates, row):
    return [1.0]
def infinite(prompt, candidates, row):
    return [float("inf") for text in candidates]
def holes(prompt, candidates, row):
    return [None for text in candidates]
class Picky(PairSelector):
    def choose(self, *arguments):
        return []
number = 3
"""
PAIR = {"prompt": "Name a colour.", "chosen": "The sky is blue.", "rejected": "No."}
SET = {"prompt": "Name a colour.", "candidates": ["blue", "green and more", "no"]}
Content = bytes | Callable[[Path], None]


@dataclass(frozen=True)
class BadInput:
    """One wrong input.

    Args:
        name: of the test.
        words: the command line, with `fit` and the config in front if it begins with an option.
        says: what the answer must contain, each part.
        files: content by name, or a function that makes it.
        code: the exit code.
        changes_model: whether each of the files is a copy of the model's folder, which its function changes.
    """

    name: str
    words: tuple[str, ...]
    says: tuple[str, ...]
    files: Mapping[str, Content] = field(default_factory=dict)
    code: int = 1
    changes_model: bool = False

    def command(self) -> list[str]:
        """The whole command line."""
        front = ("fit", "--config", "c.yaml") if not self.words or self.words[0].startswith("-") else ()
        return [*front, *self.words]


def jsonl(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_run(folder: Path, model: Path) -> None:
    """Writes a config, rows of each kind and a file of rules."""
    (folder / "c.yaml").write_text(CONFIG.replace("MODEL", str(model)))
    (folder / "rows.jsonl").write_bytes(jsonl(*[{**PAIR, "prompt": f"Name colour {n}."} for n in range(4)]))
    (folder / "sets.jsonl").write_bytes(jsonl(*[{**SET, "prompt": f"Name colour {n}."} for n in range(4)]))
    (folder / "prompts.jsonl").write_bytes(jsonl({"prompt": "a"}, {"prompt": "b"}))
    (folder / "notes.txt").write_text("hello")
    (folder / "rules.py").write_text(RULES)


def option(words: str, *says: str, code: int = 1) -> BadInput:
    """A wrong word on the command line."""
    return BadInput(words or "nothing", tuple(words.split()), says, code=code)


def data(name: str, content: Content, *says: str, words: str = "", file: str = "rows.jsonl") -> BadInput:
    """A wrong file of rows."""
    return BadInput(f"data {name}", ("--data.train", file, *words.split()), (file, *says), {file: content})


def config(name: str, content: Content, *says: str, code: int = 2) -> BadInput:
    """A wrong config file."""
    return BadInput(f"config {name}", ("fit", "--config", "bad.yaml"), says, {"bad.yaml": content}, code)


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


TRAINER = [
    option("--trainer.accelerator gpu", "no GPU"),
    option("--trainer.accelerator cuda", "no GPU"),
    option("--trainer.accelerator tpu", "accelerator"),
    option("--trainer.accelerator fast", "accelerator"),
    option("--trainer.devices 0", "devices"),
    option("--trainer.devices -2", "devices"),
    option("--trainer.devices two", "devices"),
    option("--trainer.devices [0,0]", "devices"),
    option("--trainer.num_nodes 0", "num_nodes"),
    option("--trainer.max_steps -2", "max_steps"),
    option("--trainer.max_steps ten", "max_steps", code=2),
    option("--trainer.max_steps 1.5", "max_steps", code=2),
    option("--trainer.max_epochs -2", "max_epochs"),
    option("--trainer.min_epochs -2", "min_epochs"),
    option("--trainer.max_time soon", "max_time"),
    option("--trainer.max_time 01:00", "max_time"),
    option("--trainer.max_time {weeks:x}", "max_time"),
    option("--trainer.max_time {fortnights:1}", "max_time"),
    option("--trainer.max_time -1", "max_time"),
    option("--trainer.accumulate_grad_batches 0", "accumulate_grad_batches"),
    option("--trainer.accumulate_grad_batches -1", "accumulate_grad_batches"),
    option("--trainer.precision fp8", "precision", code=2),
    option("--trainer.strategy ddp_spawn", "ddp_spawn"),
    option("--trainer.strategy fsdp", "fsdp"),
    option("--trainer.strategy deepspeed", "deepspeed"),
    option("--trainer.strategy nope", "strategy", "nope"),
    option("--trainer.gradient_clip_val -1", "gradient_clip_val"),
    option("--trainer.gradient_clip_val nan", "gradient_clip_val", code=2),
    option("--trainer.gradient_clip_algorithm middle", "gradient_clip_algorithm"),
    option("--trainer.limit_train_batches -1", "limit_train_batches"),
    option("--trainer.limit_train_batches 1.5", "limit_train_batches"),
    option("--trainer.limit_val_batches -1", "limit_val_batches"),
    option("--trainer.val_check_interval 1.5", "val_check_interval"),
    option("--trainer.val_check_interval -1", "val_check_interval"),
    option("--trainer.val_check_interval 100000 --data.val_fraction 0.5", "val_check_interval"),
    option("--trainer.check_val_every_n_epoch 0", "check_val_every_n_epoch"),
    option("--trainer.log_every_n_steps -1", "log_every_n_steps"),
    option("--trainer.overfit_batches -1", "overfit_batches"),
    option("--trainer.fast_dev_run -1", "fast_dev_run"),
    option("--trainer.profiler nope", "profiler"),
    option("--trainer.reload_dataloaders_every_n_epochs -1", "reload_dataloaders_every_n_epochs"),
    option("--trainer.barebones true --trainer.enable_checkpointing true", "barebones"),
    option("--trainer.enable_checkpointing false --trainer.callbacks+=ModelCheckpoint", "enable_checkpointing"),
    option("--trainer.callbacks+=EarlyStopping", "monitor", code=2),
    option("--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/losss --data.val_fraction 0.5 --trainer.max_steps 4", "val/losss"),
    option("--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/loss --trainer.callbacks.mode=up", "mode"),
    option("--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.monitor=val/losss --data.val_fraction 0.5", "val/losss"),
    option("--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.save_top_k=-2", "save_top_k"),
    option("--trainer.callbacks+=LearningRateMonitor", "LearningRateMonitor"),
    option("--trainer.callbacks+=EarlyStoping", "EarlyStoping", "EarlyStopping", code=2),
    option("--trainer.callbacks+=BoundaryCallback --trainer.callbacks+=BoundaryCallback", "BoundaryCallback"),
    option("--trainer.callbacks+=BoundaryCallback --boundary BoundaryCallback", "BoundaryCallback"),
    option("--trainer.logger WandbLoger", "WandbLoger", "WandbLogger", code=2),
    option("--trainer.logger=WandbLogger --trainer.logger.projct=x", "projct", "project", code=2),
    option("--trainer.logger=CometLogger", "comet"),
    option("--trainer.default_root_dir rows.jsonl", "rows.jsonl"),
    option("--trainer.default_root_dir rows.jsonl/run", "rows.jsonl"),
    option("--seed_everything -1", "seed_everything", code=2),
    option("--seed_everything 99999999999", "seed_everything", code=2),
    option("--seed_everything 1.5", "seed_everything", code=2),
    option("--seed_everything abc", "seed_everything", code=2),
]  # fmt: skip
MODEL = [
    option("--model.optimizer.lr 5e-6x", "model.optimizer.lr", "number", "5e-6x", code=2),
    option("--model.optimizer.lr -1", "learning rate"),
    option("--model.optimizer.lr nan", "lr", "number", code=2),
    option("--model.optimizer.lr inf", "lr", "number", code=2),
    option("--model.optimizer.weight_decay -1", "weight_decay"),
    option("--model.optimizer.betas [0.9,2]", "beta"),
    option("--model.optimizer.momentum 0.9", "momentum", code=2),
    option("--model.optimizer AdamX", "AdamX", "did you mean `Adam", code=2),
    option("--model.optimizer torch.optim.AdamX", "AdamX", code=2),
    option("--model.optimizer transformers.Adafactor --model.optimizer.lr 1", "lr"),
    option("--model.loss KTO", "KTO", code=2),
    option("--model.loss dpo", "did you mean `DPO`", code=2),
    option("--model.loss.beta 0", "beta"),
    option("--model.loss.beta -1", "beta"),
    option("--model.loss.beta nan", "beta", code=2),
    option("--model.loss.beta inf", "beta", code=2),
    option("--model.loss.beta high", "beta", code=2),
    option("--model.loss rules.longest", "rules.longest", code=2),
    option("--model.policy.lora.r 0", "lora.r"),
    option("--model.policy.lora.r -1", "lora.r"),
    option("--model.policy.lora.alpha 0", "lora.alpha"),
    option("--model.policy.lora.alpha nan", "lora.alpha", code=2),
    option("--model.policy.lora.alpha -8", "lora.alpha"),
    option("--model.policy.lora.dropout 1", "lora.dropout"),
    option("--model.policy.lora.dropout -0.1", "lora.dropout"),
    option("--model.policy.lora.rank 8", "rank", code=2),
    option("--model.policy.lora.target_modules [nothing]", "target_modules", "nothing"),
    option("--model.policy.lora.target_modules nothing", "target_modules", "nothing"),
    option("--model.policy.lora null --model.policy.quantization nf4", "quantization", "lora"),
    option("--model.policy.quantization int3", "quantization", code=2),
    option("--model.policy.dtype float8", "dtype", code=2),
    option("--model.policy.attn_implementation fast", "attn_implementation", "fast"),
    option("--model.policy.attn_implementation flash_attention_2", "flash"),
    option("--model.policy.gradient_checkpointing twice", "gradient_checkpointing", code=2),
    option("--model.policy.chat_template nothing.jinja", "nothing.jinja"),
    option("--model.policy.chat_template {%x%}", "chat_template"),
    option("--model.policy.adapter nothing", "lora", "adapter"),
    option("--model.policy.lora null --model.policy.adapter nothing", "nothing"),
    option("--model.policy.lora null --model.policy.adapter ./nothing", "adapter_config.json"),
    option("--model.policy.model none/at-all", "none/at-all"),
    option("--model.policy.model ./none", "none"),
    option("--model.policy.model none.gguf", "none.gguf"),
    option("--model.policy.model package://none/x.gguf", "none"),
    option("--model.policy.model rows.jsonl", "rows.jsonl"),
    option("--model.policy.model .", "config.json"),
    option("--model.policy null", "policy", code=2),
    option("--model.on_nonfinite maybe", "on_nonfinite", code=2),
]  # fmt: skip
DATA_OPTIONS = [
    option("--data.batch_size 0", "batch_size"),
    option("--data.val_batch_size 0", "val_batch_size"),
    option("--data.round_prompts 0", "round_prompts"),
    option("--data.max_prompt_tokens 0", "max_prompt_tokens"),
    option("--data.max_completion_tokens -1", "max_completion_tokens"),
    option("--data.val_fraction 1", "val_fraction"),
    option("--data.val_fraction -0.1", "val_fraction"),
    option("--data.val_fraction nan", "val_fraction", code=2),
    option("--data.boundary_fraction 1", "boundary_fraction"),
    option("--data.on_policy_share 2", "on-policy share"),
    option("--data.on_policy_share nan", "on_policy_share", code=2),
    option("--data.on_policy_share 0.5", "data.sampler", "data.judge"),
    option("--data.too_long keep", "too_long", code=2),
    option("--data.on_bad_row ignore", "on_bad_row", code=2),
    option("--data.split test", "split"),
    option("--data.val_split train", "val_split"),
    option("--data.date soon", "date"),
    option("--data.max_length 5", "max_length", code=2),
    option("--data.seed 3", "seed_everything", code=2),
    option("--data.train none.jsonl", "none.jsonl"),
    option("--data.train none", "none"),
    option("--data.train none/at-all", "none/at-all"),
    option("--data.train notes.txt", "notes.txt"),
    option("--data.train *.jsonl.gz", "*.jsonl.gz"),
    option("--data.val none.jsonl", "none.jsonl"),
    option("--data.train 5", "5"),
    option("--data.train []", "rows"),
    option("--data.train null", "train", code=2),
]
ONLINE = (
    "--data.train sets.jsonl --data.sampler TransformersSampler --data.judge RuleJudge --data.judge.rule rules.longest"
)
ROUND = f"{ONLINE} --data.sampler.max_new_tokens 2 --data.on_policy_share 1 --data.round_prompts 2"
JUDGES = [
    option(f"{ONLINE} --data.sampler.num_candidates 0", "num_candidates"),
    option(f"{ONLINE} --data.sampler.num_candidates 1 --data.on_policy_share 1", "num_candidates"),
    option(f"{ONLINE} --data.sampler.temperature 0 --data.on_policy_share 1", "temperature"),
    option(f"{ONLINE} --data.sampler.temperature -1", "temperature"),
    option(f"{ONLINE} --data.sampler.temperature nan", "temperature", code=2),
    option(f"{ONLINE} --data.sampler.top_p 0", "top_p"),
    option(f"{ONLINE} --data.sampler.top_p nan", "top_p", code=2),
    option(f"{ONLINE} --data.sampler.top_k -1", "top_k"),
    option(f"{ONLINE} --data.sampler.max_new_tokens 0", "max_new_tokens"),
    option(f"{ROUND} --data.selector rules.Picky", "`data.selector` chose none"),
    option("--data.train sets.jsonl --data.selector rules.Picky --data.judge RuleJudge --data.judge.rule rules.longest", "Picky"),
    option("--data.train sets.jsonl", "sets.jsonl, row 1", "needs a judge"),
    option("--data.train prompts.jsonl", "prompts.jsonl", "data.sampler"),
    option("--data.train prompts.jsonl --data.sampler TransformersSampler --data.judge RuleJudge --data.judge.rule rules.longest", "prompts.jsonl", "AlwaysOnPolicy"),
    option("--data.train sets.jsonl --data.judge RuleJudge --data.judge.rule rules.none", "rules.none", "sets.jsonl, row 1", "None"),
    option("--data.train sets.jsonl --data.judge RuleJudge --data.judge.rule rules.words", "rules.words", "sets.jsonl, row 1", "good"),
    option("--data.train sets.jsonl --data.judge RuleJudge --data.judge.rule rules.fewer", "rules.fewer", "sets.jsonl, row 1"),
    option("--data.train sets.jsonl --data.judge RuleJudge --data.judge.rule rules.holes", "rules.holes", "sets.jsonl, row 1"),
    option("--data.train sets.jsonl --data.judge RuleJudge --data.judge.rule rules.infinite", "sets.jsonl", "abstentions: 12"),
    option("--data.judge RuleJudge --data.judge.rule rules.nothing", "rules.nothing"),
    option("--data.judge RuleJudge --data.judge.rule nothing.at", "nothing.at"),
    option("--data.judge RuleJudge --data.judge.rule rules.number", "rules.number"),
    option("--data.judge RuleJudge", "rule", code=2),
    option("--data.judge RewardModelJudge --data.judge.model ./nothing", "nothing"),
    option("--data.judge RewardModelJudge --data.judge.model none/at-all", "none/at-all"),
    option("--data.judge PairRM --data.judge.revision main --data.judge.model ./nothing", "nothing"),
    option("--data.judge PairRM --data.judge.model ./nothing", "nothing"),
    option("--data.judge RulJudge", "RulJudge", "RuleJudge", code=2),
    option("--data.sampler TransformerSampler", "TransformersSampler", code=2),
    option("--boundary BoundaryCallback", "data.sampler"),
    option("--boundary.every_n_steps 5", "data.sampler"),
    option(f"{ONLINE} --boundary BoundaryCallback", "held-out"),
    option(f"{ONLINE} --boundary BoundaryCallback --boundary.every_n_steps 0", "every_n_steps"),
    option(f"{ONLINE} --boundary BoundaryCallback --boundary.samples_to_keep -1", "samples_to_keep"),
    option(f"{ONLINE} --boundary BoundaryCallback --boundary.max_prompts 0", "max_prompts"),
    option(f"{ONLINE} --boundary BoundaryCallback --boundary.alpha 0", "alpha"),
    option(f"{ONLINE} --boundary BoundaryCallback --boundary.alpha nan", "alpha", code=2),
    option(f"{ONLINE} --boundary BoundaryCallback --boundary.hysteresis 0.5", "hysteresis"),
    option(f"{ONLINE} --boundary BoundaryCallback --boundary.patience 0", "patience"),
    option(f"{ONLINE} --boundary BoundaryCallback --boundary.undecided wait", "undecided", code=2),
    option(f"{ONLINE} --boundary BoundaryCallback --boundary.num_candidates 0", "num_candidates"),
    option(f"{ONLINE} --boundary BoundaryCallback --boundary.batch_prompts 0", "batch_prompts"),
    option(f"{ONLINE} --boundary BoundaryCallback --boundary.max_share_of_training 0", "max_share_of_training"),
    option("--trainer.callbacks+=WinRateCallback", "data.sampler"),
]  # fmt: skip


def _nested(character: str = "[") -> bytes:
    return character.encode() * 100_000


def _parquet(path: Path, rows: list[dict[str, Any]] | None = None) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist(rows) if rows else pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())})
    parquet.write_table(table, path)


def _saved_set(path: Path) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({"test": Dataset.from_list([PAIR])}).save_to_disk(str(path))


def _cut_gzip() -> bytes:
    return gzip.compress(jsonl(*[{**PAIR, "prompt": f"{n} {'x' * n}"} for n in range(50)]))[:-200]


FILES = [
    data("empty", b"", "rows"),
    data("blank", b"\n\n\n", "rows"),
    data("not JSON", b"hello\n", "row 1"),
    data("second line cut", jsonl(PAIR) + b'{"prompt": "a', "row 2"),
    data("a list in a line", b"[1, 2]\n", "row 1"),
    data("a number", b"5\n", "row 1"),
    data("nested lines", _nested() + b"\n", "row 1", "nested"),
    data("nested list", _nested(), "nested", file="rows.json"),
    data("nested objects", b'{"a":' * 100_000, "row 1", "nested"),
    data("long number", b'{"prompt": "a", "chosen": "b", "rejected": "c", "id": ' + b"1" * 5000 + b"}\n", "row 1"),
    data("score of 400 digits", b'{"prompt": "a", "chosen": "b", "rejected": "c", "chosen_score": ' + b"1" * 400 + b"}\n", "row 1", "chosen_score"),
    data("score NaN", b'{"prompt": "a", "chosen": "b", "rejected": "c", "chosen_score": NaN}\n', "row 1", "chosen_score"),
    data("score text", jsonl({**PAIR, "chosen_score": "good"}), "row 1", "chosen_score"),
    data("score true", jsonl({**PAIR, "chosen_score": True}), "row 1", "chosen_score"),
    data("infinite score of a candidate", b'{"prompt": "a", "candidates": [{"text": "b", "score": Infinity}, "c"]}\n', "row 1", "candidates[0].score"),
    data("UTF-16", json.dumps(PAIR).encode("utf-16"), "row 1", "UTF-8"),
    data("Latin-1", json.dumps({**PAIR, "prompt": "é"}, ensure_ascii=False).encode("latin-1"), "row 1", "UTF-8"),
    data("a lone surrogate", b'{"prompt": "\\ud800", "chosen": "b", "rejected": "c"}\n', "row 1", "prompt"),
    data("no keys", jsonl({"text": "a"}), "row 1", "prompt"),
    data("no rejected", jsonl({"prompt": "a", "chosen": "b"}), "row 1", "rejected"),
    data("null prompt", jsonl({**PAIR, "prompt": None}), "row 1", "prompt"),
    data("empty prompt", jsonl({**PAIR, "prompt": "  "}), "row 1", "prompt"),
    data("a number as prompt", jsonl({**PAIR, "prompt": 5}), "row 1", "prompt"),
    data("equal answers", jsonl({**PAIR, "chosen": "No."}), "row 1"),
    data("no role", jsonl({**PAIR, "prompt": [{"content": "a"}]}), "row 1", "role"),
    data("unknown role", jsonl({**PAIR, "prompt": [{"role": "bot", "content": "a"}]}), "row 1", "bot"),
    data("no content", jsonl({**PAIR, "prompt": [{"role": "user"}]}), "row 1", "content"),
    data("an empty chat", jsonl({**PAIR, "prompt": []}), "row 1", "prompt"),
    data("a chat that ends with the assistant", jsonl({**PAIR, "prompt": [{"role": "assistant", "content": "a"}]}), "row 1", "assistant"),
    data("candidates as text", jsonl({"prompt": "a", "candidates": "b"}), "row 1", "candidates"),
    data("no candidates", jsonl({"prompt": "a", "candidates": []}), "row 1", "candidate"),
    data("a candidate without text", jsonl({"prompt": "a", "candidates": [{"score": 1}]}), "row 1", "candidates[0]"),
    data("tools as text", jsonl({**PAIR, "tools": "hammer"}), "row 1", "tools"),
    data("plain text called gz", jsonl(PAIR), "gzip", file="rows.jsonl.gz"),
    data("gzip cut off", _cut_gzip(), "cut", file="rows.jsonl.gz"),
    data("empty gz", b"", "rows", file="rows.jsonl.gz"),
    data("broken gzip", gzip.compress(jsonl(PAIR))[:12] + b"junkjunkjunk", "gzip", file="rows.jsonl.gz"),
    data("Parquet that is none", b"hello", "Parquet", file="rows.parquet"),
    data("empty file called Parquet", b"", "Parquet", file="rows.parquet"),
    data("Parquet without rows", _parquet, "rows", file="rows.parquet"),
    data("Parquet in a gz that is none", b"hello", "gzip", file="rows.parquet.gz"),
    data("CSV without rows", b"prompt,chosen,rejected\n", "rows", file="rows.csv"),
    data("CSV with a short row", b"prompt,chosen,rejected\na,b\n", "row 1", "3 cells", file="rows.csv"),
    data("CSV with an open quote", b'prompt,chosen,rejected\n"a,b,c\n', "row 1", file="rows.csv"),
    data("CSV in UTF-16", "prompt,chosen,rejected\na,b,c\n".encode("utf-16"), "UTF-8", file="rows.csv"),
    data("CSV of other columns", b"question,answer\na,b\n", "row 1", "chosen", file="rows.csv"),
    data("CSV with a score in words", b"prompt,chosen,rejected,chosen_score\na,b,c,good\n", "row 1", "chosen_score", file="rows.csv"),
    data("a saved data set without the split", _saved_set, "train", "test", file="stored"),
    data("an empty folder", lambda path: path.mkdir(), "folder", file="stored"),
    data("all too long", jsonl({**PAIR, "chosen": "word " * 900}), "completion_too_long"),
    BadInput("a file that cannot be a folder", ("--data.train", "rows.jsonl/part.jsonl"), ("rows.jsonl/part.jsonl",)),
    BadInput("validate without held-out pairs", ("validate", "--config", "c.yaml"), ("held-out", "data.val")),
    BadInput("test without held-out pairs", ("test", "--config", "c.yaml"), ("held-out", "val_fraction")),
    BadInput("predict without held-out pairs", ("predict", "--config", "c.yaml"), ("held-out", "val_fraction")),
]  # fmt: skip
CONFIGS = [
    BadInput("no such config", ("fit", "--config", "none.yaml"), ("none.yaml", "does not exist"), code=2),
    BadInput("config that is a folder", ("fit", "--config", "."), ("folder",), code=2),
    BadInput("config without a name", ("fit", "--config"), ("--config",), code=2),
    config("empty", b"", "empty"),
    config("only comments", b"# nothing\n", "empty"),
    config("a list", b"- a\n- b\n", "bad.yaml", "keys"),
    config("a text", b"hello\n", "bad.yaml", "keys"),
    config("UTF-16", "data: {train: rows.jsonl}\n".encode("utf-16"), "bad.yaml", "UTF-8"),
    config("Latin-1", "data: {train: caf\u00e9}\n".encode("latin-1"), "bad.yaml", "UTF-8"),
    config("binary", bytes(range(256)), "bad.yaml"),
    config("a key twice", b"data:\n  train: a.jsonl\n  train: b.jsonl\n", "bad.yaml", "train", "twice"),
    config("a section twice", b"data: {train: a}\nmodel: {}\ndata: {train: b}\n", "bad.yaml", "data", "twice"),
    config("a tab", b"data:\n\ttrain: a\n", "bad.yaml", "line 2"),
    config("an open quote", b'data: "a\n', "bad.yaml", "YAML"),
    config("an open bracket", b"data: {train: [a\n", "bad.yaml", "YAML"),
    config("bad indentation", b"data:\n  train: a\n model: b\n", "bad.yaml", "line 3"),
    config("nested", _nested(), "bad.yaml", "nested"),
    config("two documents", b"data: {train: a}\n---\ndata: {train: b}\n", "bad.yaml"),
    config("a Python object", b"data: !!python/object/apply:os.system [ls]\n", "bad.yaml"),
    config("empty data", b"data:\n", "data"),
    config("empty model", b"data: {train: rows.jsonl}\nmodel:\n", "model"),
    config("data as a number", b"data: 3\n", "data"),
    config("data as a list", b"data: [1]\n", "data"),
    config("trainer as a text", b"trainer: fast\n", "trainer"),
    config("unknown section", b"modle: {}\n", "modle", "model"),
    config("a key that is a number", b"data: {3: 4}\n", "3"),
    config("a key that is null", b"data: {null: 4}\n", "bad.yaml"),
    config("an alias to itself", b"data: &a {train: *a}\n", "data.train"),
]


def _checkpoints() -> list[BadInput]:
    contents: dict[str, tuple[Content, tuple[str, ...]]] = {
        "empty": (b"", ("broken",)),
        "text": (b"hello", ("broken",)),
        "torn": (saved({"state_dict": {"a": torch.zeros(500)}})[:900], ("broken",)),
        "of another program": (saved({"model": torch.zeros(3)}), ("checkpoint",)),
        "a list": (saved([1, 2]), ("checkpoint",)),
        "pickled": (pickle.dumps({"a": 1}), ("broken",)),
        "with code": (saved({"state_dict": {}, "a": BadInput}), ("checkpoint",)),
        "of another module": (
            saved(
                {
                    "state_dict": {"a": torch.zeros(1)},
                    "pytorch-lightning_version": "2.6.6",
                    "global_step": 1,
                    "epoch": 0,
                }
            ),
            ("checkpoint",),
        ),
    }
    made: list[BadInput] = []
    for command in ("fit", "validate"):
        for name, (content, says) in contents.items():
            parts = says if name == "of another module" else ("x.ckpt", *says)
            words = (command, "--config", "c.yaml", "--data.val_fraction", "0.5", "--ckpt_path", "x.ckpt")
            made.append(BadInput(f"{command} {name} checkpoint", words, parts, {"x.ckpt": content}))
    return made


CHECKPOINTS = [
    *_checkpoints(),
    option("--ckpt_path none.ckpt", "none.ckpt"),
    option("--ckpt_path .", "folder"),
    option("--ckpt_path best", "best"),
    option("validate --config c.yaml --data.val_fraction 0.5 --ckpt_path last", "no checkpoint"),
    option("validate --config c.yaml --data.val_fraction 0.5 --ckpt_path best", "best"),
]


def _broken(change: Callable[[Path], None], *says: str, name: str) -> BadInput:
    return BadInput(f"model {name}", ("--model.policy.model", "broken"), says, {"broken": change}, changes_model=True)


def _put(file: str, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).write_bytes(content)

    return change


def _cut(file: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: len(content) // 2])

    return change


def _drop(*files: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for file in files:
            (folder / file).unlink(missing_ok=True)

    return change


def _set(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


MODELS = [
    _broken(_cut("config.json"), "config.json", name="config cut off"),
    _broken(_put("config.json", b""), "config.json", name="config empty"),
    _broken(_put("config.json", b"[]"), "config.json", name="config a list"),
    _broken(_put("config.json", b"{}"), "config.json", name="config without type"),
    _broken(_put("config.json", _nested()), "config.json", name="config nested"),
    _broken(_put("config.json", b"\xff\xfe{}"), "config.json", name="config not text"),
    _broken(_drop("config.json"), "config.json", name="no config"),
    _broken(_set(model_type="unheard_of"), "unheard_of", name="unknown type"),
    _broken(_set(hidden_size="wide"), "config.json", name="a size in words"),
    _broken(_set(hidden_size=48), "broken", "other sizes", name="weights of other sizes"),
    _broken(_set(num_hidden_layers=3), "weights", name="a layer too many"),
    _broken(_set(vocab_size=300), "300 rows", name="fewer rows than the weights"),
    _broken(_cut("model.safetensors"), "model.safetensors", name="weights cut off"),
    _broken(_put("model.safetensors", b""), "model.safetensors", name="weights empty"),
    _broken(_put("model.safetensors", b"hello, no weights"), "model.safetensors", name="weights none"),
    _broken(_drop("model.safetensors"), "model.safetensors", name="no weights"),
    _broken(_cut("tokenizer.json"), "tokenizer.json", name="tokenizer cut off"),
    _broken(_put("tokenizer.json", b""), "tokenizer.json", name="tokenizer empty"),
    _broken(_put("tokenizer.json", b"{}"), "tokenizer.json", name="tokenizer without a model"),
    _broken(_put("tokenizer_config.json", b"{"), "tokenizer_config.json", name="tokenizer settings cut off"),
    _broken(_drop("tokenizer.json", "tokenizer_config.json"), "tokenizer", name="no tokenizer"),
    _broken(_put("generation_config.json", b"{"), "generation_config.json", name="generation config cut off"),
    _broken(_put("chat_template.jinja", b"{% for x %}"), "chat template", name="template broken"),
    BadInput("GGUF that is none", ("--model.policy.model", "x.gguf"), ("x.gguf",), {"x.gguf": b"hello"}),
    BadInput("GGUF cut off", ("--model.policy.model", "x.gguf"), ("x.gguf",), {"x.gguf": b"GGUF\x03\x00\x00\x00\x01"}),
]
COMMANDS = [
    option("fitt", "fitt", "fit", code=2),
    option("--nothing", "nothing", code=2),
    option("--data.train", "data.train", code=2),
    option("extra", "extra", code=2),
    option("fit extra", "extra", code=2),
    option("export nothing --output x", "nothing"),
    option("export", "RUN", code=2),
    option("chat nothing", "nothing"),
    option("sample nothing --prompts rows.jsonl", "nothing"),
    option("evaluate nothing", "nothing"),
    option("report nothing", "nothing"),
    option("report rows.jsonl", "rows.jsonl"),
    option("judge --config none.yaml", "none.yaml", code=2),
    option("measure --on_policy none.jsonl --off_policy rows.jsonl", "none.jsonl"),
    option("measure --config c.yaml", "data.val"),
    option("init rows.jsonl", "rows.jsonl"),
    option("preview --config c.yaml --rows 0", "rows"),
    option("preview --config c.yaml --row 99", "row"),
    option("plan --config c.yaml --card_gib -1", "card_gib"),
    option("completion fishh", "fishh", code=2),
]
ALL = [*TRAINER, *MODEL, *DATA_OPTIONS, *JUDGES, *FILES, *CONFIGS, *CHECKPOINTS, *MODELS, *COMMANDS]
