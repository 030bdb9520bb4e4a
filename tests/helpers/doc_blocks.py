"""Code blocks and commands of Markdown pages, as the tests run them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+?) -->\n\n?)?"
    r"^(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?[^\n]*\n(?P<text>.*?)^ *```$",
    flags=re.DOTALL | re.MULTILINE,
)
ASSIGNMENT = re.compile(r"^[A-Z_]+=\S*$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Args:
        page: path from the repository's root.
        line: the first line of the block's text, from 1.
        language: the first word of its info string; empty for none.
        title: the name of the file that the block is; empty for none.
        text: what stands between the fences.
        reason: why the tests do not run it, from a comment in front; empty for none.
    """

    page: str
    line: int
    language: str
    title: str
    text: str
    reason: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str, language: str | None = None) -> list[Block]:
    """The fenced blocks of a page in their order; of one language, or all."""
    source = (ROOT / page).read_text(encoding="utf-8")
    blocks = []
    for match in FENCE.finditer(source):
        text = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        line = source.count("\n", 0, match.start("text")) + 1
        words = match["language"], match["title"] or "", text, match["reason"] or ""
        blocks.append(Block(page, line, *words))
    return blocks if language is None else [block for block in blocks if block.language == language]


def without_blocks(page: str) -> str:
    """The page's prose."""
    return FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))


def inline_commands(page: str) -> list[str]:
    """Commands of lit-align that stand in the prose, as code."""
    return re.findall(r"`(lit-align [^`\n]+)`", without_blocks(page))


def commands_of(block: Block) -> list[list[str]]:
    """The commands of a shell block as words, without comments, assignments in front and `cd`."""
    lines = block.text.replace("\\\n", " ").splitlines()
    commands = []
    for line in lines:
        words = shlex.split(line, comments=True)
        for command in _split(words, "&&"):
            while command and ASSIGNMENT.match(command[0]):
                command.pop(0)
            if command and command[0] != "cd":
                commands.append(command)
    return commands


def _split(words: list[str], separator: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == separator:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts
