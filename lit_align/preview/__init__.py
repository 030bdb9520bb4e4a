"""What a run trains on, to read before it runs: rows as the model gets them."""

from lit_align.preview.run import preview_run

__all__ = ["preview_run"]
