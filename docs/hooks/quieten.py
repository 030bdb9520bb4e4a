"""Silences, before anything else is loaded, what libraries say that means nothing to someone who builds the site."""

from __future__ import annotations

from lit_align.cli.quiet import quiet

quiet()
