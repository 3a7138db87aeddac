import socket

import httpx
import pytest
from PIL import Image

from bundle_mllm.app.answers import Answer, Result
from bundle_mllm.app.items import ShownItems, uploaded_picture
from bundle_mllm.app.page import build_page, launch, media_routes, run_app
from bundle_mllm.app.state import OwnItem, State
from bundle_mllm.app.view import render_answers, render_bundle, render_error, render_header, render_results
from bundle_mllm.completion.item_table import write_item_table
from bundle_mllm.data import write_records
from bundle_mllm.errors import BundleMLLMError

EVIL = '<script>alert(1)</script>" onload="x'


@pytest.fixture
def items(tmp_path):
    """Four items: with a picture, with a sound, with files that are not of the folder, and with titles of HTML."""
    data = tmp_path / "data"
    (data / "media").mkdir(parents=True)
    Image.new("RGB", (900, 300), "red").save(data / "media" / "red.png")
    (data / "media" / "tone.wav").write_bytes(b"RIFF")
    (tmp_path / "secret.png").write_bytes((data / "media" / "red.png").read_bytes())
    (data / "media" / "link.png").symlink_to(tmp_path / "secret.png")
    records = [
        {"item_id": "a", "title": "red hat", "category": "hat", "image": "media/red.png"},
        {
            "item_id": "b",
            "title": "blue song",
            "category": "song",
            "audio": "media/tone.wav",
            "image": "../secret.png",
        },
        {"item_id": "c", "title": EVIL, "category": EVIL, "image": "media/link.png"},
        {"item_id": "d", "title": "", "image": str(tmp_path / "secret.png"), "audio": "items.jsonl"},
    ]
    write_records(data / "items.jsonl", records)
    return ShownItems(["a", "b", "c", "d"], ["red hat", "blue song", EVIL, ""], "a model", data)


def test_each_word_of_a_search_is_found_in_title_or_id(items):
    assert list(items.search("", None)) == [0, 1, 2, 3]
    assert list(items.search("HAT re", None)) == [0]
    assert list(items.search("", "song")) == [1]
    assert list(items.search("hat", "song")) == []


def test_only_files_of_the_folder_are_found(items):
    assert [items.has_picture(row) for row in range(4)] == [True, False, False, False]
    assert [items.sound(row) is not None for row in range(4)] == [False, True, False, False]


def test_pictures_that_are_none_or_web_addresses_are_tiles_and_the_page_says_so(tmp_path):
    pictures = ["https://example.org/a.png", "text.png"]
    records = [{"item_id": each, "image": picture} for each, picture in zip("ab", pictures, strict=True)]
    write_records(tmp_path / "items.jsonl", records)
    (tmp_path / "text.png").write_text("no picture")
    items = ShownItems(["a", "b"], ["", ""], "a model", tmp_path)
    assert [items.has_picture(row) for row in range(2)] == [False, False]
    html = render_results(items, State()) + render_header(items, [("m", "both")])
    assert "<img" not in html and "The picture of 1 item is a web address, and nothing is fetched." in html


def test_without_a_folder_there_are_no_files(items, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path / "data")
    (tmp_path / "model").mkdir()
    write_item_table(tmp_path / "model", [{"item_id": "a", "image": "media/red.png", "audio": "media/tone.wav"}])
    alone = ShownItems(["a"], ["red hat"], str(tmp_path / "model"), None)
    assert (alone.has_picture(0), alone.picture(0), alone.sound(0)) == (False, None, None)


def test_only_pictures_and_sounds_of_items_are_served(items):
    from starlette.applications import Starlette
    from starlette.testclient import TestClient

    client = TestClient(Starlette(routes=media_routes(items)))
    picture = client.get("/media/picture/0")
    assert picture.headers["content-type"] == "image/jpeg"
    assert len(picture.content) < 20_000
    assert client.get("/media/sound/1").content == b"RIFF"
    assert client.get("/media/sound/1", headers={"Range": "bytes=1-2"}).content == b"IF"
    for path in (
        "picture/1",
        "picture/2",
        "picture/3",
        "picture/99",
        "sound/3",
        "picture/../items.jsonl",
        "picture/-1",
    ):
        assert client.get(f"/media/{path}").status_code == 404


def test_titles_are_text_wherever_they_are_shown(items):
    own = {-1: OwnItem(EVIL, EVIL)}
    state = State(bundle=(0, 2, -1), own=own, query=EVIL)
    result = Result((Answer(2, 1, 0.4), Answer(-1, 2, 0.3, of=5)), (EVIL,), EVIL)
    html = (
        render_results(items, State())
        + render_bundle(items, state)
        + render_answers(items, state, [(EVIL, result)] * 2)
    )
    html += render_error(EVIL) + render_header(items, [(EVIL, EVIL)])
    assert "<script" not in html
    assert '" onload="' not in html
    assert html.count("&lt;script&gt;") > 10


def test_an_item_without_title_or_picture_is_still_named(items):
    assert 'aria-label="d: no picture"' in render_results(items, State())


def test_answers_show_place_probability_and_contributions(items):
    answer = Answer(
        0, 1, 0.1234, False, {"ranker": 0.5, "retriever": 0.25}, {"title": 1.5, "picture": -0.75}, elsewhere=3
    )
    html = render_answers(items, State(bundle=(1,)), [("one", Result((answer,))), ("two", Result())])
    for text in ("12.3%", "ranker 50.0%", "+1.50", "−0.75", "3 in the other list"):
        assert text in html
    assert "--size: 100%" in html and "--size: 50%" in html


def test_it_is_said_that_nothing_fits(items):
    html = render_answers(items, State(bundle=(1,)), [("one", Result(notes=("why",), nothing_fits=True))])
    assert "Nothing fits" in html and "why" in html


def test_a_picture_that_is_none_is_refused(tmp_path):
    (tmp_path / "no.png").write_bytes(b"<svg/>")
    with pytest.raises(BundleMLLMError, match="cannot be read"):
        uploaded_picture(str(tmp_path / "no.png"))


def test_the_page_is_built_and_served_with_its_pictures_and_no_other_file(both, alone, shop):
    page = launch([both, alone], "127.0.0.1", None, wait=False)
    try:
        url = page.local_url
        assert "What completes the bundle?" in httpx.get(url).text
        assert httpx.get(f"{url}media/picture/0").status_code == 200
        assert httpx.get(f"{url}gradio_api/file={shop / 'data' / 'items.jsonl'}").status_code == 403
        assert not httpx.get(f"{url}gradio_api/info").json()["named_endpoints"]
    finally:
        page.close()


def test_a_port_that_is_taken_is_refused_before_a_model_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BundleMLLMError, match="give another --port"):
        run_app(model="no model", port=taken.getsockname()[1])
    with pytest.raises(BundleMLLMError, match="give another --port"):
        run_app(model="no model", port=70_000)


def test_every_field_has_a_label(both):
    page = build_page([both])
    fields = [
        block
        for block in page.blocks.values()
        if block.get_block_name() in ("textbox", "dropdown", "slider", "number", "image")
    ]
    assert len(fields) > 10
    assert all(block.label for block in fields)
