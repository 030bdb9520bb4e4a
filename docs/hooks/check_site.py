"""Checks a built site: every link inside it has its target, and nothing is loaded from another machine.

python docs/hooks/check_site.py build/site
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}


class PageParts(HTMLParser):
    """What a page links to, what it loads, and the anchors that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values["id"]} if "id" in values else set()
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        if tag in LOADED and LOADED[tag] in values:
            self.loads.add(values[LOADED[tag]])
        if tag == "link" and values.get("rel") not in ("canonical", "next", "prev") and "href" in values:
            self.loads.add(values["href"])


def faults(site: Path) -> Iterator[str]:
    """One sentence for each link without a target and each thing that is loaded from elsewhere."""
    pages = {path: _parts(path) for path in sorted(site.resolve().rglob("*.html"))}
    for path, parts in pages.items():
        name = path.relative_to(site.resolve())
        yield from (f"{name} loads {target}" for target in sorted(parts.loads) if _is_elsewhere(target))
        for link in sorted(parts.links | parts.loads):
            if not _is_elsewhere(link) and not _has_target(path, link, pages):
                yield f"{name} links to {link}, which is not there"


def _parts(path: Path) -> PageParts:
    parts = PageParts()
    parts.feed(path.read_text(encoding="utf-8"))
    return parts


def _is_elsewhere(link: str) -> bool:
    return link.startswith("//") or urlsplit(link).scheme not in ("", "file")


def _has_target(page: Path, link: str, pages: dict[Path, PageParts]) -> bool:
    parts = urlsplit(link)
    if page.name == "404.html" and parts.path.startswith("/"):
        return True  # from the server's root, wherever that is
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page.resolve()
    target = target / "index.html" if target.is_dir() else target
    if target not in pages:
        return target.exists()
    return not parts.fragment or unquote(parts.fragment) in pages[target].anchors | {"__top"}


def main() -> int:
    """Prints the faults of the site that the command line names.

    Returns:
        The exit code: 1 if there are any.
    """
    wrong = list(faults(Path(sys.argv[1])))
    print("\n".join(wrong) if wrong else "Every link has its target, and nothing is loaded from elsewhere.")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
