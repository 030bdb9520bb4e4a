"""The report of a run as one HTML page that opens from disk."""

from lit_align.html_report.callback import ReportCallback
from lit_align.html_report.record import RunRecord, read_run

__all__ = ["ReportCallback", "RunRecord", "read_run"]
