"""Answers as a page and in a notebook: what they show, that it needs no other file, that no text becomes markup."""

import base64
import io
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from PIL import Image
from tiny_models import ITEM_IDS, make_completer

from bundle_mllm.cli import main
from bundle_mllm.completion import media
from bundle_mllm.completion.columns import ItemColumns
from bundle_mllm.completion.complete import Answers, RuledCompleter, load_ruled_completer
from bundle_mllm.completion.media import ItemMedia
from bundle_mllm.completion.rules import Rules
from bundle_mllm.modeling.questions_bundle_mllm import EncodedItem

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">" onload=\'alert(3)\' </style>{{ 7 * 7 }}'
TAGS = {"html", "head", "meta", "link", "title", "style", "body", "div", "main", "h1", "h2", "p", "ul", "ol", "li"}
TAGS |= {"span", "img", "audio", "table", "tbody", "tr", "th", "td", "details", "summary", "dl", "dt", "dd"}


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += f" {data}"

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def folder(tmp_path):
    """A folder with a picture of i0 and i2, a sound of i2 and files that are none."""
    Image.new("RGB", (600, 300), "red").save(tmp_path / "0.png")
    Image.new("RGB", (30, 40), "blue").save(tmp_path / "2.png")
    (tmp_path / "2.wav").write_bytes(b"RIFF of some length")
    (tmp_path / "3.png").write_bytes(b"no picture")
    (tmp_path.parent / "outside.png").write_bytes((tmp_path / "0.png").read_bytes())
    lines = ["item_id,category,image,audio", "i0,shirt,0.png,", "i2,shoes,2.png,2.wav", "i3,,3.png,3.wav"]
    (tmp_path / "items.csv").write_text("\n".join([*lines, "i4,,../outside.png,", f"i5,,{'x' * 5000},"]) + "\n")
    return tmp_path


def hostile_answers():
    items = [{"item_id": HOSTILE, "title": HOSTILE, "score": 0.25, "guess": True}]
    rules = Rules(where=f"title != '{HOSTILE[:8]}'", excluded=(HOSTILE,))
    return Answers(items, (HOSTILE,), ({"item_id": HOSTILE, "title": HOSTILE},), rules)


@pytest.mark.parametrize("kind", ["page", "notebook"])
def test_texts_never_become_markup(kind, tmp_path):
    answers = hostile_answers()
    text = answers.write_html(tmp_path / "a.html", HOSTILE).read_text() if kind == "page" else answers._repr_html_()
    page = Page(text)
    assert {tag for tag, _ in page.tags} <= TAGS
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(HOSTILE) >= 5 - (kind == "notebook")  # bundle, answer, its id, note, rule
    assert [each for each in page.all("img")] == []


def test_a_page_needs_no_other_file_and_allows_no_code(folder, tmp_path):
    completer = RuledCompleter(make_completer(), media=ItemMedia.open(folder))
    [answers] = completer.complete([{"partial": ["i0"], "candidates": ["i2", "i3"]}], explain=True)
    page = Page(answers.write_html(tmp_path / "deep" / "er" / "page.html").read_text())
    addresses = [v for _, attributes in page.tags for k, v in attributes.items() if k in ("src", "href", "srcset")]
    assert len(addresses) == 3 and all(address.startswith("data:") for address in addresses)
    [policy] = [each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script" not in policy
    assert "url(" not in page.text and "@import" not in page.text


def test_bundle_and_answers_are_shown_with_pictures_sounds_scores_and_contributions(folder):
    completer = RuledCompleter(make_completer(), media=ItemMedia.open(folder))

    def encode_items(entries):
        return [EncodedItem({"title": entry["title"]}, {"visual": [0.5] * 12}, {}) for entry in entries]

    completer.completer.item_encoder = SimpleNamespace(encode_items=encode_items)
    new = {"title": "new hat", "image": str(folder / "2.png")}
    [answers] = completer.complete([{"partial": ["i0", new]}], top_k=8, explain=True)
    page = Page(answers._repr_html_())
    alternatives = {each["alt"] for each in page.all("img")}
    assert alternatives == {"Picture of red shirt", "Picture of new hat", "Picture of white sneakers"}
    assert [each["aria-label"] for each in page.all("audio")] == ["Sound of white sneakers"]
    [sound] = [each["src"] for each in page.all("audio")]
    assert base64.b64decode(sound.partition(",")[2]) == (folder / "2.wav").read_bytes()
    assert all("visual" not in each and "bm-tile" in each["class"] for each in page.all("span") if "role" in each)
    text = " ".join(page.text.split())
    for item in answers.items:
        assert (item["title"] or item["item_id"]) in text and f"{item['score']:.1%}" in text
        for source, value in item["explanation"]["contributions"].items():
            assert re.search(rf"{source} {re.escape(f'{value:+.2f}'.replace('-', '−'))}", text)
    assert "shoes · i2" in text


def test_pictures_are_small_and_files_outside_the_folder_or_too_large_are_left_out(folder, monkeypatch):
    shown = ItemMedia.open(folder)
    picture = Image.open(io.BytesIO(shown.picture("i0")))
    assert (picture.format, picture.size) == ("JPEG", (240, 120))
    assert [shown.picture(item_id) for item_id in ("i3", "i4", "i5", "i1", None)] == [None] * 5
    assert shown.sound("i2")[1] == "audio/wav" and shown.sound("i3") is None
    monkeypatch.setattr(media, "SOUND_BYTES", 3)
    assert shown.sound("i2") is None


def test_a_picture_that_is_a_web_address_is_neither_fetched_nor_broken(folder):
    with open(folder / "items.csv", "a") as table:
        table.write("i1,,https://example.org/1.png,\n")
    urls = [{"item_id": each, "image_url": "http://example.org/a.png"} for each in ITEM_IDS]
    for source, number in (
        (ItemMedia.open(folder), "The picture of 1 item is"),
        (ItemMedia(folder, urls), "2 items are"),
    ):
        completer = RuledCompleter(make_completer(ranker=False), media=source)
        [answers] = completer.complete([{"partial": ["i0"], "candidates": ["i1"]}])
        page = Page(answers._repr_html_())
        assert number in page.text and "nothing is fetched" in page.text
        assert not any("example.org" in value for _, attributes in page.tags for value in attributes.values() if value)
    [answers] = RuledCompleter(make_completer(ranker=False), media=ItemMedia.open(folder)).complete(
        [{"partial": ["i0"], "candidates": ["i2"]}]
    )
    assert "web address" not in answers._repr_html_()


def test_notes_and_rules_are_shown_and_only_those_that_are_set(tmp_path):
    columns = ItemColumns.from_records(
        [{"item_id": each, "price": 3 + n} for n, each in enumerate(ITEM_IDS)], ITEM_IDS
    )
    rules = Rules(where="price > 2", excluded=("i1", "i2"), boost={"price": 0.5}).apply(ITEM_IDS, columns)
    [answers] = RuledCompleter(make_completer(ranker=False), rules).complete([{"partial": ["i0"]}], top_k=9)
    text = " ".join(Page(answers._repr_html_()).text.split())
    assert answers.notes[0] in text
    assert text.endswith("Rules where price > 2 excluded i1, i2 boost price: 0.5")
    assert "What the numbers mean" not in text  # nothing is explained
    assert "Rules" not in Page(Answers([], ())._repr_html_()).text and "No answer is left" in Answers([])._repr_html_()


def test_answers_with_a_guarantee_show_their_p_value_and_say_where_nothing_fits():
    item = {"item_id": "i1", "title": "hat", "score": 0.5, "p_value": 0.4321}
    assert "p-value 0.432" in Answers([item])._repr_html_()
    assert "p-value" not in Answers([{**item, "p_value": None}])._repr_html_()
    nothing = Answers([], ("nothing fits: in 90.0% of all questions the answer fits better",), set_size=0)
    assert "nothing fits: in 90.0%" in nothing._repr_html_() and "No answer is left" in nothing._repr_html_()


def test_the_command_writes_the_page_and_prints_the_same_as_without(both_once, pictured, tmp_path, capsys):
    command = ["complete", "--model", str(both_once), "--bundle", "red-shirt,red-bag", "--top-k", "3"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert main([*command, "--items", str(pictured.path), "--html", str(tmp_path / "page.html")]) == 0
    both = capsys.readouterr()
    assert both.out == printed and f"page: {tmp_path / 'page.html'}" in both.err
    page = Page((tmp_path / "page.html").read_text())
    assert len(page.all("img")) == 5 and "bundles" in page.text
    assert main([*command[:3], "--input", "q.csv", "--output", "a.csv", "--html", "page.html"]) == 2
    assert "--html" in capsys.readouterr().err


def test_a_loaded_model_shows_the_pictures_of_the_folder_that_is_given(both_once, pictured):
    completer = load_ruled_completer(both_once, items=pictured.path)
    [answers] = completer.complete([{"partial": ["red-shirt"], "candidates": ["red-bag"]}])
    assert len(Page(answers._repr_html_()).all("img")) == 2
