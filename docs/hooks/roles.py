"""Roles of docstrings, such as :class:`Name`, as plain code: the pages of the API link names by themselves."""

from __future__ import annotations

import re
from typing import Any

ROLE = re.compile(r":(?:class|func|meth|mod|attr):<code>~?")


def on_page_content(html: str, **_: Any) -> str:
    """Takes the role's name away."""
    return ROLE.sub("<code>", html)
