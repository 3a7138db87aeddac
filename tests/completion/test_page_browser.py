"""Pages of answers in Chromium: on a desk and on a phone, light and dark, with texts that try to be code."""

import wave

import pytest
from browsing import SIZES, check_static_page
from PIL import Image

from bundle_mllm.completion.complete import Answers
from bundle_mllm.completion.media import ItemMedia
from bundle_mllm.completion.rules import Rules

pytestmark = pytest.mark.browser
EVIL = "red <img src=x onerror=window.hacked=1><script>window.hacked=1</script> ${window.hacked=1} {{window.hacked=1}}"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A page with pictures, a sound, contributions, notes, rules, long words and titles that try to be code."""
    folder = tmp_path_factory.mktemp("page")
    Image.new("RGB", (300, 200), "teal").save(folder / "a.png")
    with wave.open(str(folder / "a.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))
    records = [{"item_id": "i0", "category": EVIL, "image": "a.png", "audio": "a.wav"}, {"item_id": "i1"}]
    parts = {"title": 2.5, "picture": -1.25, EVIL: 0.01, "LLM": 0.5}
    explanation = {"ranker": 0.5, "retriever": 0.25, "contributions": parts, "boost": 0.7}
    items = [
        {"item_id": "i0", "title": "red shirt", "score": 0.75, "guess": False, "explanation": explanation},
        {"item_id": "i1" * 99, "title": EVIL, "score": 0.0, "guess": True, "explanation": explanation},
        {"item_id": "i2", "title": "", "score": 0.25},
    ]
    partial = ({"item_id": "i0", "title": EVIL}, {"item_id": "i1", "title": "word" * 80})
    rules = Rules(where=f"title != '{EVIL[:3]}'", excluded=(EVIL,))
    answers = Answers(items, (EVIL,), partial, rules, ItemMedia(folder, records))
    return answers.write_html(folder / "page.html", EVIL, right="i0")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_a_page_is_quiet_harmless_accessible_and_as_wide_as_the_screen(browser, written, size, scheme):
    page = check_static_page(browser, written, size, scheme)
    assert page.get_by_role("heading", level=1).inner_text() == "What completes the bundle?"
    assert page.locator("main script, main [onerror]").count() == 0 and page.locator("img").count() == 2
    assert page.get_by_label("Sound of red shirt").evaluate("sound => (sound.load(), sound.tagName)") == "AUDIO"
    assert page.get_by_text("+0.69 doubles an answer's odds").is_visible()
    assert page.get_by_text("the item that was left out").count() == 1
    page.context.close()
