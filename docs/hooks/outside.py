"""Files of the repository that pages link to: they stand in the site as pages too, under `source/`."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")
KINDS = {".yaml": "yaml", ".yml": "yaml", ".py": "python", ".jsonl": "json"}
HOMES: dict[str, str] = {}
"""Of each page that stands for a file outside the docs folder: the file's path in the repository."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each file outside the docs folder that a page links to, and for those that these link to."""
    root = Path(config.config_file_path).parent
    waiting = list(files.documentation_pages())
    while waiting:
        file = waiting.pop()
        for path in _linked(file.content_string, file.src_uri):
            target = _page_of(path)
            if (root / path).is_file() and files.get_file_from_path(target) is None:
                HOMES[target] = path
                waiting.append(File.generated(config, target, content=_as_page(root / path, path)))
                files.append(waiting[-1])
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links between the docs folder and those pages to where they stand in the site."""
    folder = posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        target = _page_of(_resolve(page.file.src_uri, match["path"]))
        if files.get_file_from_path(target) is None:
            return match[0]
        return f"]({posixpath.relpath(target, folder or '.')}{match['anchor'] or ''})"

    return LINK.sub(moved, markdown)


def _linked(text: str, src_uri: str) -> Iterator[str]:
    """The paths, from the repository's root, of files outside the docs folder that a page links to."""
    paths = {_resolve(src_uri, match["path"]) for match in LINK.finditer(text)}
    return (path for path in sorted(paths) if not path.startswith(("docs/", "..")))


def _resolve(src_uri: str, link: str) -> str:
    """The path from the repository's root that a page's relative link names."""
    home = HOMES.get(src_uri, f"docs/{src_uri}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(home), link))


def _page_of(path: str) -> str:
    """The page in which a file of the repository stands."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"source/{path}" if path.endswith(".md") else f"source/{path}.md"


def _as_page(file: Path, path: str) -> str:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        return "\n".join(_as_markdown(cell) for cell in json.loads(text)["cells"])
    return text if file.suffix == ".md" else f"# {path}\n\n```{KINDS.get(file.suffix, 'text')}\n{text}```\n"


def _as_markdown(cell: dict[str, Any]) -> str:
    """A cell of a notebook, with what it printed."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return f"{source}\n"
    printed = "".join("".join(output.get("text", ())) for output in cell["outputs"])
    return f"```python\n{source}\n```\n" + (f"\n```text\n{printed.rstrip()}\n```\n" if printed else "")
