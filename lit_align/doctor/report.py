"""Findings as a table and as a record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lit_align.console import format_duration
from lit_align.doctor.findings import Finding


def all_right(findings: Sequence[Finding]) -> bool:
    """Whether all that was checked is right."""
    return all(finding.status != "failed" for finding in findings)


def finding_line(finding: Finding, width: int) -> str:
    """A finding in one line.

    Args:
        finding: to show.
        width: of the column of names.
    """
    took = f"{finding.seconds:5.1f} s" if finding.status != "skipped" else " " * 7
    return f"{finding.status:<8} {finding.name:<{width}} {took}  {finding.text}"


def verdict(findings: Sequence[Finding], seconds: float) -> str:
    """The last line: how many checks went how."""
    counts = Counter(finding.status for finding in findings)
    return f"{counts['ok']} ok, {counts['failed']} failed, {counts['skipped']} skipped, in {format_duration(seconds)}."


def as_record(environment: dict[str, Any], findings: Sequence[Finding], seconds: float) -> dict[str, Any]:
    """All of it in plain types."""
    return {
        "environment": environment,
        "checks": [asdict(finding) for finding in findings],
        "right": all_right(findings),
        "seconds": seconds,
    }
