"""How far a fit is: two lines on a terminal, or plain lines in a file."""

from lit_align.progress.bar import AlignmentProgressBar
from lit_align.progress.lines import PlainProgress

__all__ = ["AlignmentProgressBar", "PlainProgress"]
