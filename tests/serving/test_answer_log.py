"""The log of answers: whole lines, whatever happens to the writers and the disk."""

import json
import multiprocessing
import os
import resource
import signal

import pytest

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.serving.answer_log import AnswerLog, read_log

LONG = "x" * 5000


def write_many(path, name, count, max_bytes=1 << 30):
    log = AnswerLog(path, max_bytes)
    for number in range(count):
        log.append([{"writer": name, "number": number, "text": LONG}])


def write_forever(path):
    while True:
        write_many(path, "killed", 1000)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("max_bytes", [1 << 30, 50_000])
def test_processes_that_write_at_once_lose_no_line_also_when_the_log_begins_anew(tmp_path, max_bytes):
    path, context = tmp_path / "log.jsonl", multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(path, name, 50, max_bytes)) for name in range(4)]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    found = sorted((record["writer"], record["number"]) for record in read_log(path))
    assert found == [(name, number) for name in range(4) for number in range(50)]
    assert (len(list(tmp_path.iterdir())) > 5) == (max_bytes < 1 << 30)


@pytest.mark.slow
def test_a_killed_writer_leaves_no_torn_line_behind(tmp_path):
    path, context = tmp_path / "log.jsonl", multiprocessing.get_context("fork")
    for attempt in range(20):
        writer = context.Process(target=write_forever, args=(path,))
        writer.start()
        writer.join(0.02 + attempt / 500)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        AnswerLog(path, 1 << 30).append([{"writer": "next", "number": attempt}])
    assert [record["number"] for record in lines(path) if record["writer"] == "next"] == list(range(20))


def test_what_a_kill_has_cut_is_taken_off_by_the_next_writer_and_skipped_by_a_reader(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n{"b": "' + "x" * 200_000)
    assert list(read_log(path)) == [{"a": 1}]
    AnswerLog(path, 1 << 30).append([{"c": 1}])
    assert lines(path) == [{"a": 1}, {"c": 1}]
    path.write_text("x" * 200_000)
    AnswerLog(path, 1 << 30).append([{"c": 1}])
    assert lines(path) == [{"c": 1}]


def write_up_to(path, size):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    log, written = AnswerLog(path, 1 << 30), 0
    for number in range(10):
        try:
            log.append([{"number": number, "text": LONG}])
            written += 1
        except OSError:
            pass
    os._exit(written)


def test_a_full_disk_leaves_whole_lines(tmp_path):
    """A file that may not grow further is written in part, as on a full disk."""
    path = tmp_path / "log.jsonl"
    writer = multiprocessing.get_context("fork").Process(target=write_up_to, args=(path, 18_000))
    writer.start()
    writer.join()
    assert writer.exitcode == 3 and [record["number"] for record in lines(path)] == [0, 1, 2]


def test_others_cannot_read_the_log(tmp_path):
    AnswerLog(tmp_path / "log.jsonl", 1 << 30).append([])
    assert (tmp_path / "log.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_device_that_is_full_is_an_error():
    with pytest.raises(OSError, match="No space left"):
        AnswerLog("/dev/full", 1 << 30).append([{"a": 1}])


def test_a_missing_or_damaged_log_is_named(tmp_path):
    with pytest.raises(BundleMLLMError, match="There is no file"):
        list(read_log(tmp_path / "log.jsonl"))
    (tmp_path / "log.jsonl").write_text("{}\nno\n")
    with pytest.raises(BundleMLLMError, match=r"log\.jsonl line 2 is not JSON"):
        list(read_log(tmp_path / "log.jsonl"))
