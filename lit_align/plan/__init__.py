"""Plans the memory of a run from the model's config, before anything is loaded."""

from lit_align.plan.fit import Change, changes_to_fit
from lit_align.plan.report import as_record, format_plan
from lit_align.plan.setup import Setup, setup_of
from lit_align.plan.simulate import Memory, simulate

__all__ = ["Change", "Memory", "Setup", "as_record", "changes_to_fit", "format_plan", "setup_of", "simulate"]
