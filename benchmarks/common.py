"""Shared parts of the benchmarks: a random model, pairs of given lengths, both trainers on them, and the report."""

from __future__ import annotations

import json
import os
import platform
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("lit-align", "torch", "lightning", "transformers", "peft", "trl", "accelerate")
BETA = 0.1
FIRST_PLAIN_ID = 2  # 0 pads, 1 ends a completion


@dataclass(frozen=True)
class Shape:
    """The lengths of a pair in tokens: its prompt and each of its two completions."""

    name: str
    prompt: int
    completion: int

    def __str__(self) -> str:
        return f"{self.prompt} + 2x{self.completion}"


@dataclass(frozen=True)
class RandomLlama:
    """The size of a randomly initialised Llama with tied embeddings, in the proportions of SmolLM2.

    The defaults have 31 million parameters, 19 million of them in the embeddings.
    """

    hidden: int = 384
    layers: int = 8
    vocabulary: int = 49152

    @property
    def heads(self) -> int:
        return max(3, self.hidden // 64)

    def save(self, folder: Path) -> Path:
        """Saves the model, always with the same weights, in float32."""
        import torch
        from transformers import AutoModelForCausalLM, LlamaConfig

        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.hidden * 8 // 3,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads // 3,
            max_position_embeddings=8192,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
            tie_word_embeddings=True,
        )
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        return folder


Pair = dict[str, list[int]]


def random_pairs(count: int, lengths: Callable[[random.Random], tuple[int, int, int]], vocabulary: int) -> list[Pair]:
    """Makes pairs of random tokens.

    Args:
        count: number of pairs.
        lengths: draws the lengths of a pair's prompt, chosen and rejected completion.
        vocabulary: size of the model's vocabulary; tokens are drawn from it without the two special ids.
    """
    rng = random.Random(0)

    def tokens(length: int) -> list[int]:
        return [rng.randrange(FIRST_PLAIN_ID, vocabulary) for _ in range(length)]

    pairs = []
    for _ in range(count):
        prompt, chosen, rejected = lengths(rng)
        pairs.append({"prompt_ids": tokens(prompt), "chosen_ids": tokens(chosen), "rejected_ids": tokens(rejected)})
    return pairs


# ---------------------------------------------------------------------- lit-align


def pair_batches(pairs: Sequence[Pair], batch_size: int) -> list[Any]:
    """Makes lit-align's micro-batches of the pairs, in order."""
    import torch

    from lit_align.batch import Padded, PairBatch

    batches = []
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        prompt = Padded.from_sequences([pair["prompt_ids"] for pair in batch], 0)
        chosen = Padded.from_sequences([pair["chosen_ids"] for pair in batch], 0)
        rejected = Padded.from_sequences([pair["rejected_ids"] for pair in batch], 0)
        on_policy = torch.zeros(len(batch), dtype=torch.bool)
        batches.append(PairBatch(prompt, chosen, rejected, on_policy, torch.full((len(batch),), torch.nan)))
    return batches


def lit_module(model: Path | str, rank: int | None, dtype: str, learning_rate: float, compiled: bool = False) -> Any:
    """Makes lit-align's module with DPO and AdamW, which is fused as in TRL; `rank` None trains all weights."""
    import torch

    from lit_align import AlignmentModule
    from lit_align.losses import DPO
    from lit_align.policy import LoraSpec, PolicySpec

    lora = None if rank is None else LoraSpec(r=rank, alpha=2 * rank)
    module = AlignmentModule(
        PolicySpec(str(model), dtype=dtype, lora=lora, compile=compiled),  # type: ignore[arg-type]
        DPO(beta=BETA),
        optimizer=lambda params: torch.optim.AdamW(params, lr=learning_rate, weight_decay=0.0, fused=True),
    )
    module.configure_model()
    return module


def lit_fit(module: Any, batches: Sequence[Any], steps: int, callback: Any, folder: Path) -> None:
    """Trains on the batches with a plain Lightning trainer that writes nothing."""
    from torch.utils.data import DataLoader

    dataset: Any = batches  # a list serves as one, though torch does not declare it
    lit_trainer(steps, callback, folder).fit(module, DataLoader(dataset, batch_size=None))


def lit_trainer(steps: int, callback: Any, folder: Path) -> Any:
    """Makes a plain Lightning trainer that writes nothing."""
    from lightning.pytorch import Trainer

    return Trainer(
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


# ---------------------------------------------------------------------- TRL


def trl_trainer(
    model: Path,
    pairs: Sequence[Pair],
    *,
    batch_size: int,
    steps: int,
    rank: int | None,
    dtype: str,
    learning_rate: float,
    precompute: bool,
    compiled: bool = False,
    folder: Path,
    callbacks: Sequence[Any] = (),
) -> Any:
    """Makes TRL's DPOTrainer for the same tokens in the same order, without any work that lit-align does not do.

    No gradient checkpointing, no gradient clipping, no logging, no truncation. Its fused LM head is always on.
    `step_losses` has the losses of its steps.
    """
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig

    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    config = DPOConfig(
        **trl_plain(folder),
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        train_sampling_strategy="sequential",
        precompute_ref_log_probs=precompute,
        torch_compile=compiled,
        max_length=None,
        dataloader_pin_memory=False,
    )
    return _tokenised_dpo_trainer()(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)),
        args=config,
        train_dataset=Dataset.from_list(list(pairs)),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"),
        callbacks=list(callbacks),
        peft_config=None if rank is None else trl_lora(rank),
    )


def trl_plain(folder: Path) -> dict[str, Any]:
    """Settings of all TRL trainers: they switch off what costs time and lit-align does not do."""
    import torch

    return {
        "output_dir": str(folder),
        "beta": BETA,
        "gradient_checkpointing": False,
        "bf16": False,  # no autocast: the weights have the precision of `dtype`, as in lit-align
        "use_cpu": not torch.cuda.is_available(),
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def trl_lora(rank: int) -> Any:
    """Makes the config of the same adapters as :func:`lit_module`."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def _tokenised_dpo_trainer() -> Any:
    """A subclass of TRL's DPOTrainer that takes token ids and records the loss of each step."""
    from trl import DPOTrainer

    class TokenisedDPOTrainer(DPOTrainer):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.step_losses: list[float] = []

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # the pairs are token ids already

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            self.step_losses.append(loss.item())
            return loss

    return TokenisedDPOTrainer


# ---------------------------------------------------------------------- report


ALLOCATORS = {"kept": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}, "system": {}}
"""How glibc treats freed memory in a measured process. kept: it keeps it, as lit-align sets in every fit on a CPU
(`lit_align/policy/cpu/host_memory.py`). system: the default, which returns it; a lit-align fit still sets the other."""


def measured_environment(threads: int, allocator: str = "kept") -> dict[str, str]:
    """Returns the environment of a measured process: no network, `threads` threads of torch."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")},
        **ALLOCATORS[allocator],
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def machine(threads: int) -> dict[str, Any]:
    """Describes the machine of a measurement and its load."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average": list(os.getloadavg()),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a table in Markdown, aligned for the terminal."""
    from lit_align.markdown import markdown_table

    return markdown_table([header, *rows], aligned=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, default=_plain) + "\n", encoding="utf-8")
    print(f"written: {path}", file=sys.stderr)


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else str(value)
