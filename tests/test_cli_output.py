"""What the command prints: any title on any terminal, as text, and never a failure after the work is done."""

import io
import json
import sys

import pytest

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
