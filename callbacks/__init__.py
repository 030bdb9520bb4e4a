"""Schedules decide when the policy trains on which source. Each is a short subclass to use, copy and change."""

from callbacks.adaptive import AdaptiveInterval
from callbacks.alternating import Alternating
from callbacks.always import AlwaysOffPolicy, AlwaysOnPolicy, ConstantMixture
from callbacks.fixed_switch import FixedSwitch
from callbacks.gains import GainSchedule
from callbacks.look_ahead import LookAheadBoundary
from callbacks.mixture import MixtureBoundary

__all__ = [
    "AdaptiveInterval",
    "Alternating",
    "AlwaysOffPolicy",
    "AlwaysOnPolicy",
    "ConstantMixture",
    "FixedSwitch",
    "GainSchedule",
    "LookAheadBoundary",
    "MixtureBoundary",
]
