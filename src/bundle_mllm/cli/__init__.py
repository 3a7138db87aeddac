"""The `bundle-mllm` command: find the command, read its options, run it.

Knows nothing about what a command does. Until one runs, neither torch nor transformers is imported.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from bundle_mllm import __version__
from bundle_mllm.cli.commands import COMMANDS
from bundle_mllm.cli.show import say
from bundle_mllm.errors import BundleMLLMError

DEBUG = "BUNDLE_MLLM_TRACEBACK"
"""Environment variable that shows the traceback of an error instead of its message alone."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 2 for a mistake in the arguments or files."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for what libraries print
    try:
        _run(argv)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, RecursionError) as error:  # what the package and its libraries raise for wrong input
        if os.environ.get(DEBUG):
            raise
        say(f"bundle-mllm: error: {' '.join(str(error).split())}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bundle-mllm: interrupted; start the same command again to continue.", file=sys.stderr)
        return 130
    return 0


def _run(argv: Sequence[str]) -> None:
    name, *arguments = argv or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
    elif name == "--version":
        print(f"bundle-mllm {__version__}")
    elif name not in COMMANDS:
        alike = get_close_matches(name, COMMANDS, n=2)
        hint = f"did you mean {' or '.join(alike)}?" if alike else "`bundle-mllm --help` shows all."
        raise BundleMLLMError(f"There is no command {name!r}: {hint}")
    else:
        from bundle_mllm.cli.options import parse_options

        command = COMMANDS[name]
        defaults, description = command.recipe(arguments) if command.recipe else (command.defaults, None)
        options = parse_options(
            [_load(each) for each in command.settings.split()],
            arguments,
            prog=f"bundle-mllm {name}",
            description=description,
            defaults=defaults,
            positional=command.positional,
        )
        run = _load(command.run) if isinstance(command.run, str) else command.run
        if text := command.show(run(**options), options):
            say(text)


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(f"bundle_mllm.{module}"), name)


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: bundle-mllm COMMAND [OPTIONS]\n\nProduct bundling with multimodal LLMs (Bundle-MLLM).\n\n"
        f"{commands}\n\n"
        "`bundle-mllm COMMAND --help` explains a command; `bundle-mllm --version` prints the version."
    )
