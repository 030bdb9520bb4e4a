"""The Dockerfile copies what is there and what .dockerignore lets in, and runs as nobody special."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()


def arguments_of(instruction: str) -> list[list[str]]:
    return [line.split()[1:] for line in LINES if line.startswith(f"{instruction} ")]


def test_what_is_copied_is_there_and_is_not_ignored() -> None:
    sources = {word for words in arguments_of("COPY") if "--from=wheel" not in words for word in words[:-1]}
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert sources == {line[1:] for line in ignored if line.startswith("!")}
    assert ignored.index("*") < min(i for i, line in enumerate(ignored) if line.startswith("!"))
    assert all((ROOT / source).exists() for source in sources)


def test_what_the_wheel_is_made_of_is_copied() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = settings["project"]
    wheel = settings["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], *project["license-files"], project["readme"]}
    copied = {word for words in arguments_of("COPY") for word in words}
    assert needed <= copied


def test_it_is_cuda_and_not_root() -> None:
    assert all(words[0].startswith("nvidia/cuda:") for words in arguments_of("FROM"))
    users = arguments_of("USER")
    assert len(users) == 1 and re.fullmatch(r"[1-9]\d*", users[0][0])
    assert LINES.index(f"USER {users[0][0]}") < LINES.index('ENTRYPOINT ["lit-align"]')
