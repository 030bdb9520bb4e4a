"""A watch over the numbers of a run: what goes wrong without an error is said, once, with what to do."""

from lit_align.watch.alarm import Alarm
from lit_align.watch.callback import RunWatch

__all__ = ["Alarm", "RunWatch"]
