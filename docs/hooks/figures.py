"""Puts the docs' own drawings into the page itself, so that they follow its light and its dark colours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page

DRAWINGS = "figures/"
ALONE = re.compile(r'<style class="alone">.*?</style>', flags=re.DOTALL)
"""The colours of a drawing that stands by itself, as on a code host."""
IMAGE = re.compile(r"^!\[[^\]]*\]\((?P<path>[^)]+\.svg)\)$", flags=re.MULTILINE)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Replaces an image that stands alone on its line and names a drawing in `docs/figures`."""
    folder = Path(config.docs_dir) / Path(page.file.src_uri).parent

    def drawn(match: re.Match[str]) -> str:
        if DRAWINGS not in match["path"]:
            return match[0]
        drawing = (folder / match["path"]).read_text(encoding="utf-8").strip()
        one_line = re.sub(r"\n\s*", " ", ALONE.sub("", drawing))
        return f'<figure class="drawing">{one_line}</figure>'

    return IMAGE.sub(drawn, markdown)
