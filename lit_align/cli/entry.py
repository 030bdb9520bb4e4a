"""The entry point of the command `lit-align`."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from lit_align.cli import examples
from lit_align.cli import help as overview
from lit_align.cli.errors import UsageError, with_name_clash
from lit_align.escape import escape
from lit_align.steady import steady_output

OF_ONE_FILE = ("init", "doctor", "export", "chat", "sample", "evaluate", "report", "judge")
"""Commands that are `run` in a file of their name; `measure` is, on recorded scores."""
WRONG_USAGE = 2
FOR_USERS = ("MisconfigurationException", "SafetensorError")  # by name: their packages are not loaded for `--help`
INTERRUPTED = 130  # the shell's number for Ctrl-C
TERMINATED = 143  # and for SIGTERM


def main(args: Sequence[str] | None = None) -> int:
    """Runs `lit-align` with the given words, or with those of the command line.

    Returns:
        The exit code: 0; 1 after an error and 2 after wrong usage, which have been printed; 130 after Ctrl-C, 143
        after SIGTERM.
    """
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words or os.environ.get("LIT_ALIGN_DEBUG", "") not in ("", "0")
    words = [word for word in words if word != "--debug"]
    if os.getcwd() not in sys.path:  # last: a user's own classes are found, and no file replaces an installed module
        sys.path.append(os.getcwd())
    # OpenMP's threads spin while they wait for each other. If another process wants the same cores, each of the many
    # small operations of a step then takes a time slice: runs were 3 to 10 times slower. Threads that never spin are a
    # quarter slower on an idle machine; with some microseconds of spinning neither happens. torch reads this when it
    # is loaded. GNU's OpenMP, which torch brings for Linux, prefers the count to the policy.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    with steady_output():
        return _exit_code(words, debug)


def _exit_code(words: list[str], debug: bool) -> int:
    try:
        _dispatch(words)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning ends an interrupted fit with exit(1)
            return INTERRUPTED
        if any(kind.__name__ == "SIGTERMException" for kind in type(end).__mro__):  # Lightning's own code is 0
            return end.code if isinstance(end.code, int) else TERMINATED
        raise
    except UsageError as error:
        print(
            f"error: {escape(with_name_clash(str(error)))}\n(lit-align COMMAND --help lists the options)",
            file=sys.stderr,
        )
        return WRONG_USAGE
    except Exception as error:
        if debug or not _is_message(error):
            raise
        from lit_align.cli.messages import explain

        message = "\n".join([explain(with_name_clash(str(error))), *getattr(error, "__notes__", ())])
        print(f"\nerror: {escape(message)}\n(--debug shows where)", file=sys.stderr)
        return 1
    return 0


def _dispatch(words: list[str]) -> None:
    command = words[0] if words else "--help"
    if command in ("-h", "--help"):
        print(overview.text())
    elif command == "--version":
        print(f"lit-align {version('lit-align')}")
    elif command in overview.COMMANDS and any(word in ("-h", "--help") for word in words):
        try:
            _run(command, words)
        finally:
            print(examples.text(command))
    elif command in overview.COMMANDS or command.startswith("-"):
        _run(command, words)
    else:
        raise UsageError(overview.unknown(command))


def _run(command: str, words: list[str]) -> None:
    from lit_align.cli.quiet import quiet

    quiet()
    recorded = any(word.split("=")[0] in ("--on_policy", "--off_policy") for word in words)
    if command == "completion":
        from lit_align.cli.completion import run as print_script

        print_script(words[1:], main)
    elif command in OF_ONE_FILE or (command == "measure" and recorded):
        importlib.import_module(f"lit_align.cli.{command}").run(words[1:])
    else:
        from lit_align.cli.app import AlignmentCLI

        AlignmentCLI(words)


def _is_message(error: Exception) -> bool:
    """Whether an error's text is meant for users: wrong input, or raised on purpose by this package or Lightning."""
    frames = traceback.extract_tb(error.__traceback__)
    if any(map(_is_users_own, frames)):
        return False
    if isinstance(error, ValueError | OSError | ImportError) or type(error).__name__ in FOR_USERS:
        return True
    return bool(frames) and _is_on_purpose(frames[-1])


def _is_users_own(frame: traceback.FrameSummary) -> bool:
    """Whether a line is in a file of the user's, which only a traceback finds; a constructor refuses its arguments."""
    installed = ("site-packages", "dist-packages", "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    file = Path(frame.filename)
    own = file.is_relative_to(Path(__file__).parents[1]) or frame.filename.startswith("<")
    return not own and not set(file.parts) & set(installed) and frame.name not in ("__init__", "__post_init__")


def _is_on_purpose(frame: traceback.FrameSummary) -> bool:
    file = Path(frame.filename)
    if file.is_relative_to(Path(__file__).parents[1]):
        return True
    return "lightning" in file.parts and (frame.line or "").startswith("raise ")
