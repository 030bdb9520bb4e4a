"""Every code block and command of the README and the docs runs here, or says why not; every link has its target.

A page is run from its top to its end in a folder as `lit-align init` leaves it:

- a block with a title is a file (```` ```python title="my_rule.py" ````), and is written before what follows it;
- `python` is executed with a tiny model in place of the real one, and for two steps;
- `yaml` is read by the command line's own parser, on top of the quickstart;
- `bash` holds commands: those of lit-align are parsed by it (`--print_config`) or run if they need no model, those of
  make and Python have their target, others say why they are not run. On the pages of `IN_FULL` those of lit-align
  run, one after the other, with a tiny model;
- `json` is JSON, and `text` is what a program printed.

`<!-- not run: the reason -->` in front of a block takes it out.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback

from lit_align.cli import main
from lit_align.cli.init import copy_user_files
from lit_align.data import PairSelector
from lit_align.judges import Judge
from lit_align.losses import PreferenceLoss
from lit_align.sampling import Publisher, Sampler
from tests.helpers.doc_blocks import PAGES, ROOT, Block, blocks_of, commands_of, inline_commands, without_blocks

KINDS = (PreferenceLoss, Judge, Sampler, Publisher, PairSelector, Callback)
QUICKSTART = "configs/quickstart.yaml"
ON_A_RUN = ("export", "chat", "sample")
"""Commands on a finished run, which are only parsed."""
HOMES = {
    **dict.fromkeys(("judge", "sampler", "selector", "train", "val"), "data"),
    **dict.fromkeys(("policy", "loss", "optimizer", "lr_scheduler", "reference"), "model"),
}
"""The part of a config to which a key belongs that a page shows by itself."""
IN_FULL = ("docs/start.md", "docs/own_data.md", "docs/guides/extend.md")
"""Pages whose commands a reader types one after the other."""
OF_A_FIT = {
    "--trainer.max_steps": "20",
    "--data.sampler.max_new_tokens": "4",
    "--trainer.accelerator": "cpu",
    "--trainer.callbacks": "null",
    "--data.batch_size": "2",
    "--data.round_prompts": "8",
    "--boundary.max_prompts": "4",
    "--boundary.every_n_steps": "1",
}
"""What makes a fit small, where a command does not set it."""
OF_A_MEASUREMENT = ("--data.sampler.max_new_tokens", "--boundary.max_prompts")
SMALLER = {
    r"package://[\w/.-]+\.gguf": "{model}",
    r"max_steps=\d+": 'max_steps=2, accelerator="cpu"',
    r"max_new_tokens=\d+": "max_new_tokens=4",
    r"(max|num)_prompts=\d+": r"\1_prompts=4",
}
"""What makes a page's Python small enough for a test."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `lit-align init` leaves."""
    copy_user_files(tmp_path, force=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(page: str, folder: Path, tiny_model: Path) -> None:
    scope: dict[str, Any] = {"__name__": page}
    for block in blocks_of(page):
        if block.title:
            write_block(folder, block)
        if block.reason:
            continue
        if block.language == "bash" and page in IN_FULL:
            for command in commands_of(block):
                run_in_full(command, block.place, tiny_model)
        else:
            run_block(block, scope, tiny_model)


def write_block(folder: Path, block: Block) -> None:
    path = folder / block.title
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")
    importlib.invalidate_caches()


def run_block(block: Block, scope: dict[str, Any], model: Path) -> None:
    if block.language == "python":
        execute(block, scope, model)
    elif block.language == "yaml":
        read_yaml(block)
    elif block.language == "bash":
        for command in commands_of(block):
            run_command(command, block.place)
    elif block.language == "json":
        assert [json.loads(line) for line in block.text.splitlines()] if block.title else json.loads(block.text)
    else:
        assert block.language == "text", f"{block.place}: what is this block? bash, yaml, python, json or text"


def execute(block: Block, scope: dict[str, Any], model: Path) -> None:
    code = block.text
    for pattern, smaller in SMALLER.items():
        code = re.sub(pattern, smaller.format(model=model), code)
    exec(compile(code, block.place, "exec"), scope)


def read_yaml(block: Block) -> None:
    """Reads a whole config, a key of one, or an object by itself."""
    content = yaml.safe_load(block.text)
    if "class_path" in content:
        build_parser_of(content["class_path"]).parse_object({"object": content})
        return
    config: dict[str, Any] = {}
    for key, value in content.items():
        if key in HOMES:
            classes = {"model": "lit_align.AlignmentModule", "data": "lit_align.AlignmentDataModule"}
            part = config.setdefault(HOMES[key], {"class_path": classes[HOMES[key]], "init_args": {}})
            part["init_args"][key] = value
        else:
            config[key] = value
    Path("of_the_page.yaml").write_text(yaml.safe_dump(config))
    run_command(["lit-align", "fit", "--config", QUICKSTART, "--config", "of_the_page.yaml"], block.place)


def build_parser_of(class_path: str) -> ArgumentParser:
    module, _, name = class_path.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    base = next(base for base in KINDS if inspect.isclass(kind) and issubclass(kind, base))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "object")
    return parser


def run_command(words: list[str], place: str) -> None:
    program, *arguments = words
    if program == "lit-align":
        run_lit_align(arguments, place)
    elif program == "make":
        assert all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in arguments), place
    elif program == "pip":
        require_extras(arguments, place)
    elif program == "python":
        require_program(arguments, place)
    else:
        raise AssertionError(f"{place}: no test runs `{program}`; put `<!-- not run: why -->` in front")


def run_lit_align(arguments: list[str], place: str) -> None:
    """Runs a command that needs no model, and lets the real parser read any other."""
    if arguments[0] in ON_A_RUN and "--help" not in arguments:
        importlib.import_module(f"lit_align.cli.{arguments[0]}").build_parser().parse_args(arguments[1:])
        return
    needs_no_model = arguments[0] == "init" or arguments[0].startswith("-") or any("help" in word for word in arguments)
    if "--on_policy" in arguments:
        write_answers()
    elif not needs_no_model:
        arguments = [*arguments, "--print_config"]
    try:
        code = main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 0, f"{place}: {' '.join(arguments)}"


def require_extras(arguments: list[str], place: str) -> None:
    """Only the clone or the package itself is installed, with extras that it has; anything else needs a marker."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    match = re.fullmatch(r"(?:\.|lit-align)(?:\[([\w,]+)\])?", arguments[-1])
    assert match and arguments[:-1] in (["install"], ["install", "-e"]), f"{place}: {arguments}"
    assert set((match[1] or "").split(",")) - {""} <= set(project["optional-dependencies"]), place


def run_in_full(words: list[str], place: str, model: Path) -> None:
    """Runs a command as it stands, with a tiny model and a twentieth of its steps."""
    if words[0] != "lit-align" or words[1] == "init":
        run_command(words, place)
        return
    command = words[1:]
    small = {"fit": OF_A_FIT, "measure": {key: OF_A_FIT[key] for key in OF_A_MEASUREMENT}}.get(command[0], {})
    command += [word for key in small if not sets(command, key) for word in (key, small[key])]
    if not any(word.startswith("runs/") for word in words):
        command += ["--model.policy.model", str(model)]
    if "--trainer.max_steps" in command:
        value = command.index("--trainer.max_steps") + 1
        command[value] = str(int(command[value]) // 20)
    assert main(command) == 0, f"{place}: {' '.join(words)}"


def sets(command: list[str], key: str) -> bool:
    """Whether a command has a value for a key, or adds to it."""
    return key in command or f"{key}+" in command


def write_answers() -> None:
    """The files of scored answers that a measurement without a model reads."""
    for name, score in (("mine.jsonl", 1.0), ("theirs.jsonl", 0.0)):
        prompts = [f"Tell me of {thing}." for thing in ("tea", "the sea", "bees", "snow", "moss", "a lamp")]
        rows = [{"prompt": prompt, "candidates": [{"text": "So it is.", "score": score}]} for prompt in prompts]
        Path(name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def require_program(arguments: list[str], place: str) -> None:
    """A program of the repository is there and knows the options."""
    name = f"{arguments[1]}/__main__.py" if arguments[0] == "-m" else arguments[0]
    path = ROOT / name
    assert path.is_file(), f"{place}: {path}"
    sources = "\n".join(file.read_text() for file in path.parent.glob("*.py"))
    options = [word for word in arguments if word.startswith("--")]
    assert [option for option in options if f'"{option}"' not in sources] == [], place


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_prose_are_taken(page: str, folder: Path) -> None:
    for line in dict.fromkeys(inline_commands(page)):
        words = re.sub(r"--config (\.\.\.|FILE|runs/NAME/config\.yaml)", f"--config {QUICKSTART}", line).split()
        if "..." not in words and "COMMAND" not in words:
            whole = "--config" in words or "--on_policy" in words
            run_lit_align(words[1:] if whole else [words[1], "--help"], f"{page}: {line}")


@pytest.mark.parametrize("page", PAGES)
def test_no_code_hides_from_the_tests(page: str) -> None:
    indented = re.findall(r"\n\n    (?:lit-align|python|pip|make) .*", without_blocks(page))
    assert not indented, "write commands in a fenced block, where they are tested"


@pytest.mark.parametrize("page", PAGES)
def test_links_have_their_targets(page: str) -> None:
    path = ROOT / page
    for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page)):
        if re.match(r"https?://", link):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        if "reference" in Path(target).parts:
            continue  # made when the site is built, which checks it
        assert file.is_relative_to(ROOT) and file.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors_of(file), f"{page}: {link}"


def anchors_of(file: Path) -> set[str]:
    """The anchors of a page's headings, as MkDocs and code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    plain = [re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}
