"""The `bundle-mllm` command: thin wrappers that read arguments, call the Python API and print the result.

Knows nothing that the Python API does not offer.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import tyro

from bundle_mllm.cli.data import best_accuracy, check, encode, import_data, questions, synthetic
from bundle_mllm.cli.hub import convert, export, publish, publish_dataset
from bundle_mllm.cli.models import compare, complete, demo, evaluate, report, run_train, train

DEBUG = "BUNDLE_MLLM_TRACEBACK"
"""Environment variable that shows the traceback of an error instead of its message alone."""

COMMANDS = {
    "demo": demo,
    "synthetic": synthetic,
    "best-accuracy": best_accuracy,
    "questions": questions,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "report": report,
    "complete": complete,
    "import": import_data,
    "encode": encode,
    "check": check,
    "publish": publish,
    "publish-dataset": publish_dataset,
    "convert": convert,
    "export": export,
}

_DESCRIPTION = "Product bundling with multimodal LLMs (Bundle-MLLM). `bundle-mllm COMMAND --help` explains a command."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 2 for a mistake in what was given."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["train"]:
            run_train(argv[1:])
        else:
            tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="bundle-mllm", description=_DESCRIPTION, args=argv)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:  # what the package and the stack below raise for what they were given
        if os.environ.get(DEBUG):
            raise
        print(f"bundle-mllm: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bundle-mllm: interrupted; start the same command again to continue.", file=sys.stderr)
        return 130
    return 0
