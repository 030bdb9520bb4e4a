"""How sure a mean of shares is."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist


def mean_interval(total: float, total_of_squares: float, count: int, confidence: float) -> tuple[float, float]:
    """A confidence interval for the mean of `count` values in [0, 1].

    Student's t on the values with one value at 0 and one at 1 added: the added pair keeps the interval
    open where all values agree and where there are few. (Adding successes and failures: Agresti & Coull,
    "Approximate is better than exact", The American Statistician 52, 1998; here with t for z, since the
    values are shares and their variance is estimated.) Its coverage is simulated in the tests.

    Args:
        total: sum of the values.
        total_of_squares: sum of their squares.
        count: number of values, at least 1.
        confidence: such as 0.95, in (0, 1).

    Returns:
        (low, high) within [0, 1]; the plain mean is inside.

    Example:
        >>> low, high = mean_interval(10.0, 10.0, 10, 0.95)  # ten values of 1
        >>> round(low, 3), high
        (0.733, 1.0)
    """
    n = count + 2
    centre = (total + 1) / n
    variance = max(0.0, total_of_squares + 1 - n * centre**2) / (n - 1)
    half = student_t_quantile((1 + confidence) / 2, n - 1) * math.sqrt(variance / n)
    mean = total / count
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


@lru_cache(maxsize=256)
def student_t_quantile(probability: float, degrees: int) -> float:
    """The t with P(T <= t) = `probability` (above 0.5) for Student's t with `degrees` degrees of freedom."""
    low = high = NormalDist().inv_cdf(probability)  # the tails of t are heavier, so t lies above
    while _central_probability(high, degrees) < 2 * probability - 1:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if _central_probability(middle, degrees) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _central_probability(t: float, degrees: int) -> float:
    """P(|T| <= t), the finite sums 26.7.3 and 26.7.4 of Abramowitz & Stegun."""
    theta = math.atan(t / math.sqrt(degrees))
    sine = math.sin(theta)
    cosine = math.cos(theta)
    odd = degrees % 2
    term = cosine if odd else 1.0
    terms = 0.0
    for k in range(1 + odd, degrees, 2):
        terms += term
        term *= k / (k + 1) * cosine**2
    return 2 / math.pi * (theta + sine * terms) if odd else sine * terms
