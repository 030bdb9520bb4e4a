"""What a fit left: `open_run` finds it, and `TrainedRun.load` gives the trained policy and the one it started from."""

from lit_align.trained.policy import TrainedPolicy
from lit_align.trained.run import TrainedRun, open_run

__all__ = ["TrainedPolicy", "TrainedRun", "open_run"]
