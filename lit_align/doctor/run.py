"""Makes the checks, one after the other, within a limit of time."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

import torch

from lit_align.doctor import exactness, fits, memory, speed
from lit_align.doctor.findings import Bench, Check, Finding, make

CHECKS: tuple[Check, ...] = (
    *(check for check in exactness.CHECKS if check.seconds < exactness.LONG),
    *fits.CHECKS,
    *memory.CHECKS,
    *speed.CHECKS,
    *(check for check in exactness.CHECKS if check.seconds >= exactness.LONG),  # the first to go if time is short
)


def choose(names: Sequence[str] | None) -> list[Check]:
    """The checks of these names or groups, in their order; all without names.

    Raises:
        ValueError: there is no check of a name.
    """
    if not names:
        return list(CHECKS)
    known = [check.name for check in CHECKS]
    groups = sorted({name.split("/")[0] for name in known})
    for name in names:
        if name not in known and name not in groups:
            raise ValueError(
                f"--only {name}: there is no such check. Groups: {', '.join(groups)}. Checks: {', '.join(known)}."
            )
    return [check for check in CHECKS if check.name in names or check.name.split("/")[0] in names]


def examine(
    checks: Sequence[Check],
    device: torch.device,
    seconds: float,
    begin: Callable[[str], object] = lambda name: None,
    end: Callable[[Finding], object] = lambda finding: None,
) -> list[Finding]:
    """Makes checks, each in a folder of its own that is removed behind it.

    Args:
        checks: what to check.
        device: where.
        seconds: how long all of it may take; a check that would not end in time is skipped.
        begin: called with the name of each check that begins.
        end: called with each finding.
    """
    deadline = time.monotonic() + seconds
    findings = []
    for place, check in enumerate(checks):
        left = deadline - time.monotonic()
        if left < check.seconds:
            text = f"takes about {check.seconds:.0f} s, and {max(left, 0):.0f} s of --seconds {seconds:.0f} are left"
            finding = Finding(check.name, "skipped", text)
        else:
            begin(check.name)
            rest = sum(other.seconds for other in checks[place:])
            finding = _make(check, device, left * check.seconds / rest)
        findings.append(finding)
        end(finding)
    return findings


def _make(check: Check, device: torch.device, seconds: float) -> Finding:
    with tempfile.TemporaryDirectory(prefix="lit-align-doctor") as folder, silence():
        finding = make(check, Bench(device, Path(folder), seconds))
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return finding


@contextmanager
def silence() -> Iterator[None]:
    """Lets nothing through to the terminal within the block, not even what libraries in C++ write."""
    sys.stdout.flush()
    sys.stderr.flush()
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        _descriptors_to(nowhere),
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _descriptors_to(file: TextIO) -> Iterator[None]:
    kept = [os.dup(number) for number in (1, 2)]
    for number in (1, 2):
        os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
