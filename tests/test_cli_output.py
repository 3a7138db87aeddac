"""What the command prints: any title on any terminal, as text, and never a failure after the work is done."""

import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys

import pytest
from hub_server import HubServer

from bundle_mllm.cli import main, show
from bundle_mllm.data import write_records

HOSTILE = "\x1b[2Jred\x07 \x00\u202edress\x9b31m\x7f \u2028"
NICE = "कुर्ता می\u200cخواهم 👩\u200d👧 Crème\u00a0± 红"


@pytest.fixture
def stdout(monkeypatch):
    """A standard output of the given encoding; returns what was written."""

    def make(encoding):
        raw = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding, write_through=True))
        return lambda: raw.getvalue().decode(encoding)

    return make


def test_control_and_direction_characters_are_shown_as_text_and_others_as_they_are():
    shown = show.printable(f"{HOSTILE}\n{NICE}", "utf-8")
    assert shown.splitlines()[0] == r"\u001b[2Jred\u0007 \u0000\u202edress\u009b31m\u007f \u2028"
    assert shown.splitlines()[1:] == [NICE]


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii", "latin-1"])
@pytest.mark.parametrize("text", [HOSTILE, NICE, "half \ud83d of one", "plain"])
def test_a_json_document_keeps_its_values_on_every_terminal(encoding, text):
    document = json.dumps({"title": text}, ensure_ascii=False, indent=2)
    shown = show.printable(document, encoding)
    shown.encode(encoding)
    assert json.loads(shown) == {"title": text}


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_an_import_of_emoji_ends_well_whatever_the_terminal_writes(tmp_path, stdout, encoding):
    shop = tmp_path / "shop"
    write_records(
        shop / "items.csv", [{"item_id": f"{n}", "title": f"👗 {n}"} for n in range(9)] + [{"item_id": "👗"}]
    )
    write_records(shop / "bundles.csv", [{"bundle_id": "b", "items": "1|2|👠"}])
    written = stdout(encoding)
    assert main(["import", "--format", "tabular", str(shop), "--output-dir", str(tmp_path / "data")]) == 0
    assert r"'\ud83d\udc60' in 'b'" in written()
    assert (tmp_path / "data" / "items.jsonl").is_file()


def test_what_libraries_print_never_fails_either(stdout, monkeypatch):
    written = stdout("ascii")
    monkeypatch.setattr("bundle_mllm.cli._run", lambda argv: sys.stdout.write("± 0.1\n"))
    assert main(["compare"]) == 0
    assert written() == "\\xb1 0.1\n"


def test_titles_in_errors_are_shown_as_text(tmp_path, capsys):
    assert main(["import", "--format", "tabular", f"{tmp_path}/a\x1b[2J", "--output-dir", str(tmp_path / "data")]) == 2
    assert r"a\u001b[2J" in capsys.readouterr().err


def test_titles_of_answers_are_shown_as_text():
    ranked = [{"score": 0.5, "item_id": "a\x1b", "title": HOSTILE}]
    assert "\x1b" not in show.printable(show.ranking(ranked), "utf-8")
    assert len(show.printable(show.ranking(ranked), "utf-8").splitlines()) == 1


def run_without_a_terminal(*arguments, **environment):
    """Run Python as from cron, with both streams in files. Returns the status, and what they got."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    variables |= {name: str(value) for name, value in environment.items()}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=variables, timeout=600
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_training_without_a_terminal_is_a_few_lines_and_ends_with_scores_and_the_next_command(tiny_data, tmp_path):
    small = ["--retriever.steps", "40", "--retriever.num-questions", "64", "--validation-questions", "8"]
    run = [
        "-m",
        "bundle_mllm.cli",
        "train",
        "--data",
        tiny_data,
        "--validation-candidates",
        "4",
        "--stage-two.num-questions",
        "0",
        *small,
    ]
    stage = ["--stage-one.num-questions", "240", "--stage-one.batch-size", "4", "--stage-one.warm-start-steps", "3"]
    status, out, err = run_without_a_terminal(*run, *stage, "--output-dir", tmp_path / "a b")
    assert status == 0, err
    assert "\r" not in err + out and "shards" not in err and "Warning" not in err
    assert err.startswith(f"features of {tiny_data}: visual (")
    progress = [line for line in err.splitlines() if "%" in line]
    assert len([line for line in progress if line.startswith("stage one: ")]) <= 10
    assert any(line.startswith("stage one: 100% (60 of 60), ") for line in progress)
    record = json.loads((tmp_path / "a b" / "run.json").read_text())
    lines = out.splitlines()
    number = record["both"]["num_questions"]
    assert lines[0].strip() == f"hit_rate@1 on {number} validation questions of 4 candidates"
    best = max(entry["validation_hit_rate@1"] for entry in record["stage_one"])
    for line, label, value in zip(
        lines[1:],
        ("retriever", "ranker, stage one", "both"),
        (record["retriever"]["hit_rate@1"], best, record["both"]["hit_rate@1"]),
        strict=False,
    ):
        assert line.startswith(f"{label} ") and f" {value:.3f} ± " in line
    assert lines[4] == f"model folder: {tmp_path / 'a b'}"
    assert [shlex.split(line)[-1] for line in lines[5:]] == ["questions.jsonl", "all"]
    assert f"--model '{tmp_path / 'a b'}'" in lines[6]
    status, out, err = run_without_a_terminal(
        *run, "--base-model", "none", "--output-dir", tmp_path / "quiet", "--quiet"
    )
    assert (status, err) == (0, "") and out.splitlines()[1].startswith("retriever ")


WRONG_NAMES = """
import sys
from bundle_mllm.cli import main
data, out = sys.argv[1:]
for arguments in (
    ["complete", "--model", "no/such", "--bundle", "a"],
    ["train", "--data", data, "--output-dir", out, "--base-model", "no/such"],
    ["encode", "--data", data, "--textual", "transformers:no/such"],
    ["import", "--format", "huggingface", "no/such", "--output-dir", out],
):
    assert main(arguments) == 2
"""


@pytest.mark.parametrize("is_reachable", [True, False])
def test_a_wrong_hub_name_is_one_line_at_once(is_reachable, tiny_data, tmp_path):
    """Whether the Hub has no such repository, or cannot be reached at all, which libraries try for half a minute."""
    with HubServer() as hub, socket.create_server(("127.0.0.1", 0)) as closed:
        url = hub.url if is_reachable else f"http://127.0.0.1:{closed.getsockname()[1]}"
        closed.close()
        status, out, err = run_without_a_terminal(
            "-c", WRONG_NAMES, tiny_data, tmp_path, HF_ENDPOINT=url, HF_HOME=tmp_path
        )
    assert (status, out, len(err.splitlines())) == (0, "", 4), err
    reasons = (
        "the Hub has no such repository|doesn't exist on the Hub",
        "it is not in the cache, and 127.0.0.1 cannot be reached|Couldn't reach 'no/such' on the Hub",
    )
    for line in err.splitlines():
        assert re.match(rf"bundle-mllm: error: .*no/such.*({reasons[not is_reachable]})", line)
