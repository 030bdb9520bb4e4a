"""Keeps libraries from printing while they are imported and while they load a model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

NOISY = ("transformers", "bitsandbytes", "bitsandbytes.backends.cpu.ops", "peft")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Lets only errors through within the block; levels and filters are restored after it."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
