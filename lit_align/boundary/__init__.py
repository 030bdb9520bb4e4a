"""The boundary between the two stages: its score, its measurement, and the callback that acts on it."""

from lit_align.boundary.budget import MeasuringBudget
from lit_align.boundary.callback import BoundaryCallback
from lit_align.boundary.measurement import Measurement, MeasurementOutcome, Sides
from lit_align.boundary.result import BoundaryResult, Decision
from lit_align.boundary.score import BoundaryScore, measure_sets
from lit_align.boundary.sequential import SequentialTest
from lit_align.boundary.switch import Choice, Switch

__all__ = [
    "BoundaryCallback",
    "BoundaryResult",
    "BoundaryScore",
    "Choice",
    "Decision",
    "Measurement",
    "MeasurementOutcome",
    "MeasuringBudget",
    "SequentialTest",
    "Sides",
    "Switch",
    "measure_sets",
]
