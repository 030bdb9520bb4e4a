"""Checks of settings that many parts have, and of their kinds."""

from __future__ import annotations

import math
from dataclasses import is_dataclass
from typing import Any


def require_at_least_1(**numbers: int | None) -> None:
    """Raises a ValueError that names the first number below 1; None is no number and passes."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"expected {name} to be at least 1, got {number}")


def require_shares(**shares: float) -> None:
    """Raises a ValueError that names the first share outside [0, 1)."""
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"expected {name} in [0, 1), got {share}")


def require_not_negative(**numbers: float | None) -> None:
    """Raises a ValueError that names the first number below 0, or none; None passes."""
    for name, number in numbers.items():
        if number is not None and not number >= 0:
            raise ValueError(f"expected {name} to be 0 or above, got {number}")


def require_positive(**numbers: float) -> None:
    """Raises a ValueError that names the first number that is not above 0 and finite."""
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ValueError(f"expected {name} to be a finite number above 0, got {number}")


def is_record(kind: Any) -> bool:
    """Whether a class only holds settings: a dataclass over nothing else, which a config gives without class_path."""
    return isinstance(kind, type) and kind is not object and all(map(is_dataclass, kind.__mro__[:-1]))
