"""The report of a run: the win rate against its start and the summary at its end."""

from lit_align.report.summary import RunSummary
from lit_align.report.win_rate import WinRateCallback

__all__ = ["RunSummary", "WinRateCallback"]
