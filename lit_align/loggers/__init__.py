"""What a run gives its loggers besides numbers: tables, histograms and charts, to each as far as it can show them."""

from lit_align.loggers.shown import log_histogram, log_score_chart, log_table
from lit_align.loggers.trackio import TrackioLogger

__all__ = ["TrackioLogger", "log_histogram", "log_score_chart", "log_table"]
