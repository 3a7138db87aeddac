"""Commands that are killed or meet a full disk leave nothing half-written: a sample of `make test-faults`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cases import CASES, NOT_TRIED
from system_calls import IS_SUPPORTED

from bundle_mllm.cli import main
from bundle_mllm.cli.commands import COMMANDS


def test_every_command_is_tried_or_named_with_a_reason():
    tried = {case.command.split()[0] for case in CASES.values()}
    assert tried | NOT_TRIED.keys() == COMMANDS.keys() and not tried & NOT_TRIED.keys()


def test_only_commands_that_say_so_leave_something_unfinished():
    for case in CASES.values():
        assert not case.unfinished or COMMANDS[case.command.split()[0]].continues


@pytest.mark.slow
@pytest.mark.skipif(not IS_SUPPORTED, reason="needs Linux on x86-64")
def test_faults_of_each_kind_leave_nothing_half_written(tmp_path):
    output = tmp_path / "results.jsonl"
    cases = ["import", "catalog update"]
    options = ["--kills", "3", "--others", "1", "--output", output, "--commands", *cases]
    command = [sys.executable, Path(__file__).parent, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in output.read_text().splitlines()]
    assert [result["command"] for result in results] == cases
    assert all(sum(counts.values()) >= 1 for result in results for counts in result["table"].values())


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (OSError(28, "No space left on device", "out/x"), "No space left on device: 'out/x'. Each file is as it was"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left on device. Each file"),
        (RuntimeError("basic_ios::clear: iostream error"), "A file could not be written. Each file"),
        (RuntimeError("inline_container.cc:672] . unexpected pos 1 vs 0"), "A file could not be written. Each file"),
        (PermissionError(13, "Permission denied", "out"), "Permission denied: 'out'. Each file is as it was or whole"),
        (KeyboardInterrupt(), "bundle-mllm: interrupted: each file is as it was or whole"),
    ],
)
def test_what_a_command_leaves_is_said_in_one_line(error, shown, monkeypatch, capsys):
    def fail(argv):
        raise error

    monkeypatch.setattr("bundle_mllm.cli._run", fail)
    assert main(["questions"]) in (2, 130)
    [line] = capsys.readouterr().err.splitlines()
    assert shown in line
    assert main(["train"]) in (2, 130)
    assert "hat was done so far is kept, and the same command continues" in capsys.readouterr().err


def test_a_mistake_in_the_program_keeps_its_traceback(monkeypatch):
    def fail(argv):
        raise KeyError("a mistake of ours")

    monkeypatch.setattr("bundle_mllm.cli._run", fail)
    with pytest.raises(KeyError):
        main(["questions"])
