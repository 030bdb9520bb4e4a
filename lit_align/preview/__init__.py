"""Shows the rows of a run as the model gets them, before it runs."""

from lit_align.preview.run import preview_run

__all__ = ["preview_run"]
