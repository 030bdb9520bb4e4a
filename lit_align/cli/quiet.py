"""Silences messages of libraries that mean nothing to the user of an alignment run. All others pass."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from lit_align.escape import escape

WARNINGS = (
    r".*does not have many workers which may be a bottleneck.*",  # the pairs are tokenised ahead
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*Checkpoint directory .* exists and is not empty.*",  # a resumed run's own
    r".*Total length of `list` across ranks is zero.*",  # no held-out pairs, no validation
    r".*Trying to infer the `batch_size`.*",
    r".*Experiment logs directory .* exists and is not empty.*",
    r".*You called `self.log\('.*', \.\.\.\)` in your .* but have no logger configured.*",
    r".*`_get_pg_default_device` will be deprecated.*",
    r".*MatMul8bitLt.*",
    r".*torch\.jit\..* is deprecated.*",
    r".*is in eval mode.*|.*module\(s\) in eval mode at the start of training.*",  # dropout off is meant
    r".*isinstance\(treespec, LeafSpec\).*",  # between Lightning and torch
)
MESSAGES = (
    "💡 Tip:",
    "GPU available:",
    "TPU available:",
    "HPU available:",
    "`Trainer.fit` stopped:",
    "Seed set to",
    "was configured so 100% of the batches",
    "Restoring states from the checkpoint",  # "Restored all states" follows
    "Detected KeyboardInterrupt",  # the run itself tells where it stopped
    "Using default `ModelCheckpoint`",
    "The following generation flags are not valid",
    "thrown while requesting",  # of the hub; the error after the last try says it
    "Retrying in ",
    "Failed to load CPU gemm_4bit_forward",  # bitsandbytes has a slower way of its own
)
LOGGERS = (
    "lightning.pytorch",
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "transformers.generation.configuration_utils",
    "transformers.generation.utils",
    "bitsandbytes.backends.cpu.ops",
    "huggingface_hub.utils._http",
)


def quiet() -> None:
    """Installs the filters, for a process that belongs to one run."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.formatwarning = _one_line
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(filter_, _Silence) for filter_ in logger.filters):
            logger.addFilter(_Silence())


def _one_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: Any = None) -> str:
    """Formats a warning for users, without the line of code that raised it."""
    kind = "" if issubclass(category, UserWarning) else f" ({category.__name__}, {filename}:{lineno})"
    return f"warning: {escape(str(message))}{kind}\n"


class _Silence(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not any(message in text for message in MESSAGES)
