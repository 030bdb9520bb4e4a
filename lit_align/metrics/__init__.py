"""The two characteristics of candidates: diversity and quality (arXiv 2508.10530)."""

from lit_align.metrics.characteristics import characteristics

__all__ = ["characteristics"]
