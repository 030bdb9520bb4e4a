"""Pages that are made from the code at each build: every setting, every command, every public class."""

from __future__ import annotations

import functools

import api_pages
import command_pages
import setting_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


@functools.cache
def pages() -> dict[str, str]:
    """The Markdown of each made page, by its path in the docs folder."""
    return {**dict(setting_pages.pages()), **dict(command_pages.pages()), **dict(api_pages.pages())}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the made pages into the navigation, as its last part."""
    api = [path for path in sorted(pages()) if "/api/" in path and not path.endswith("index.md")]
    settings = [path for path in pages() if "/api/" not in path]
    assert config.nav is not None
    config.nav.append({"Reference": [*settings, {"API": ["reference/api/index.md", *api]}]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the made pages to those of the docs folder."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files
