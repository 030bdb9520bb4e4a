"""Checks of settings that many parts have."""

from __future__ import annotations


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
