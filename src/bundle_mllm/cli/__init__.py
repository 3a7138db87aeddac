"""The `bundle-mllm` command: find the command, read its options, run it.

Knows nothing about what a command does. Until one runs, neither torch nor transformers is imported.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from errno import EACCES, EDQUOT, ENOSPC, EPERM, EROFS
from importlib import import_module
from typing import Any

from bundle_mllm import __version__
from bundle_mllm.cli.commands import COMMANDS
from bundle_mllm.cli.show import say
from bundle_mllm.cli.terminal import only_our_messages, silence_libraries
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub_access import give_up_early

DEBUG = "BUNDLE_MLLM_TRACEBACK"
"""Environment variable that shows the traceback of an error, and what libraries say, instead of one line."""
_TERMINAL = "cli.settings:TerminalSettings"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 2 for a mistake in the arguments or files."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not os.environ.get(DEBUG):
        silence_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for what libraries print
    try:
        _run(argv)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        say(f"bundle-mllm: interrupted: {_what_is_left(argv)}", sys.stderr)
        return 130
    except Exception as error:
        refusal = _refusal_of_disk(error)
        expected = (ValueError, OSError, RecursionError)  # what the package and its libraries raise for wrong input
        if os.environ.get(DEBUG) or not (refusal or isinstance(error, expected)):
            raise
        text = " ".join(str(error).split()) if refusal is None else f"{refusal}. {_what_is_left(argv).capitalize()}"
        say(f"bundle-mllm: error: {text}", sys.stderr)
        return 2
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
            [_load(each) for each in (*command.settings.split(), _TERMINAL)],
            arguments,
            prog=f"bundle-mllm {name}",
            description=description,
            defaults=defaults,
            positional=command.positional,
        )
        with only_our_messages(options.pop("quiet")):
            give_up_early()
            run = _load(command.run) if isinstance(command.run, str) else command.run
            if text := command.show(run(**options), options):
                say(text)


def _what_is_left(argv: Sequence[str]) -> str:
    """Return what an interrupted command leaves, and what to do then."""
    command = COMMANDS.get(next(iter(argv), ""))
    if command is not None and command.continues:
        return "what was done so far is kept, and the same command continues from there."
    return "each file is as it was or whole, so the same command can be given again."


def _refusal_of_disk(error: BaseException) -> str | None:
    """Return why a disk takes no more files, whichever library met that; `None` for another error."""
    reasons = [os.strerror(number) for number in (ENOSPC, EDQUOT, EROFS, EACCES, EPERM)]
    if isinstance(error, OSError) and error.strerror in reasons:
        return " ".join(str(error).split())
    if isinstance(error, BundleMLLMError):
        return None
    text = str(error)
    if found := next((reason for reason in reasons if reason in text), None):  # such as of safetensors and tokenizers
        return found
    of_torch = ("PytorchStreamWriter", "basic_ios::clear", "unexpected pos")  # of its writer, which gives no reason
    return "A file could not be written" if any(each in text for each in of_torch) else None


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
