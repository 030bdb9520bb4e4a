"""Counter-based randomness: every draw has a seed of its own, derived from its purpose.

No random generator's state is carried from one draw to the next, so a resumed run draws the same as the uninterrupted
run, whatever its start-up has drawn in between.
"""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Derives a 63-bit seed for one draw.

    Args:
        seed: the run's seed.
        purpose: names and numbers that tell this draw from all others, such as `"dropout", rank, step`.

    Example:
        >>> derive_seed(1, "sample", 0) == derive_seed(1, "sample", 0)
        True
        >>> derive_seed(1, "sample", 0) == derive_seed(1, "sample", 1)
        False
    """
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
