"""The Dockerfile agrees with what it copies, starts and checks; `make dockerfile` does what it says."""

import json
import runpy
from pathlib import Path

from bundle_mllm.cli import main

ROOT = Path(__file__).parent.parent
TRIAL = runpy.run_path(str(ROOT / ".ci" / "try_dockerfile.py"))
FILE = TRIAL["instructions"]((ROOT / "Dockerfile").read_text(encoding="utf-8"))


def arguments(name):
    return [argument for each, argument in FILE if each == name]


def test_it_starts_the_service_as_another_user_than_root_and_checks_the_same_port(capsys):
    [port], [user], [command] = arguments("EXPOSE"), arguments("USER"), arguments("CMD")
    command = json.loads(command)
    assert command[:2] == ["bundle-mllm", "serve"] and command[command.index("--port") + 1] == port == TRIAL["PORT"]
    assert user != "0" and user.isdecimal() and f"--uid {user}" in "".join(arguments("RUN"))
    assert f"127.0.0.1:{port}/readyz" in arguments("HEALTHCHECK")[0]
    assert command[command.index("--model") + 1] == TRIAL["MODEL"]
    assert main([*command[1:], "--workers", "0"]) == 2  # the options are those of the command
    assert "workers is 0" in capsys.readouterr().err


def test_dockerignore_lets_through_what_is_copied_and_the_package_needs_and_nothing_else():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    copied = {source for argument in arguments("COPY") for source in argument.split()[:-1]}
    assert lines[0] == "*" and {line[1:] for line in lines if line.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)
