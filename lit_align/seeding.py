"""Counted randomness: every draw has a seed of its own, derived from what it is for.

Nothing carries the state of a random generator from one draw to the next, so a resumed run draws
what the uninterrupted run would have drawn, whatever its start-up drew in between.
"""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one draw.

    Args:
        seed: the run's seed.
        purpose: what the draw is for, such as `"dropout", rank, step`.

    Example:
        >>> derive_seed(1, "sample", 0) == derive_seed(1, "sample", 0)
        True
        >>> derive_seed(1, "sample", 0) == derive_seed(1, "sample", 1)
        False
    """
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
