"""What a run needs of memory, told from the model's config before anything is loaded."""

from lit_align.plan.fit import Change, changes_to_fit
from lit_align.plan.report import as_record, readable
from lit_align.plan.setup import Setup, setup_of
from lit_align.plan.simulate import Memory, simulate

__all__ = ["Change", "Memory", "Setup", "as_record", "changes_to_fit", "readable", "setup_of", "simulate"]
