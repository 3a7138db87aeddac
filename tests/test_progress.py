"""Progress: a bar on a terminal with rate and remaining time; elsewhere one line for each tenth; nothing if hidden."""

import sys

import pytest

from bundle_mllm import progress
from bundle_mllm.progress import Progress, note, progress_bars, steps, without_progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by as much as is asked for; a whole minute per step at first."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def wait(seconds=60.0):
        now[0] += seconds

    return wait


def test_each_part_has_a_bar_with_rate_and_remaining_time(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bars() as show:
        for done in (2, 4):
            show("visual", done, 4)
        show("textual", 7, 7)
    lines = [line.split("\r")[-1] for line in capsys.readouterr().err.split("\n")]
    assert [line.split(":")[0] for line in lines if line.strip()] == ["visual", "textual"]
    assert "4/4 [" in lines[0] and "/s]" in lines[0]


def test_where_there_is_no_terminal_each_tenth_is_a_line(capsys, clock):
    for _ in steps(range(805), "stage one"):
        clock()
    printed = capsys.readouterr().err
    lines = printed.splitlines()
    assert "\r" not in printed and len(lines) == 10
    assert lines[0] == "stage one: 10% (81 of 805), 1:21:00 so far, 12:04:00 left"
    assert lines[-1] == "stage one: 100% (805 of 805), 13:25:00 so far"


def test_a_part_of_an_instant_is_one_line(capsys, clock):
    for _ in steps(range(100), "words"):
        clock(0.001)
    assert capsys.readouterr().err == "words: 100% (100 of 100), 00:00 so far\n"


def test_what_was_done_before_counts_neither_as_a_tenth_nor_in_the_rate(capsys, clock):
    part = Progress("stage one", 10, done=8)
    clock()
    part.update(9, "loss 0.5")
    part.update(9)
    assert capsys.readouterr().err == "stage one: 90% (9 of 10), 01:00 so far, 01:00 left, loss 0.5\n"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_hidden_progress_writes_nothing(capsys, monkeypatch, is_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    with without_progress(), progress_bars() as show:
        show("visual", 4, 4)
        assert list(steps("ab", "letters")) == ["a", "b"]
        note("0.5")
    assert capsys.readouterr() == ("", "")
    note("0.5")
    assert capsys.readouterr() == ("", "0.5\n")


def test_nothing_to_do_draws_nothing(capsys):
    with progress_bars():
        pass
    list(steps([], "nothing"))
    assert list(steps("ab", "letters", shown=False)) == ["a", "b"]
    assert capsys.readouterr().err == ""
