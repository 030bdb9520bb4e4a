"""Keeps libraries from printing while they are imported and while they load a model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

from lit_align.console import progress_style

NOISY = ("transformers", "bitsandbytes", "bitsandbytes.backends.cpu.ops", "peft")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Lets only errors through within the block, and bars where bars are shown; all is restored after it."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    hides_bars = progress_style() != "bar" and transformers_logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        if hides_bars:
            transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            if hides_bars:
                transformers_logging.enable_progress_bar()
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
