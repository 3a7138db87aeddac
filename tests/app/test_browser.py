"""Someone uses the app in a browser, on a desk and on a phone."""

import re
import wave

import pytest
from browsing import SIZES, serious_faults

from bundle_mllm.app.answers import AppModel
from bundle_mllm.app.page import launch
from bundle_mllm.data import read_records, write_records

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip("playwright.sync_api", reason="needs bundle-mllm[browser]")
sync_api.expect.set_options(timeout=20_000)
EVIL = "red <img src=x onerror=window.hacked=1> ${window.hacked=1} {{window.hacked=1}}"


@pytest.fixture(scope="module")
def url(shop):
    """The address of the app, with two models and a catalog with a sound and a title that tries to be HTML."""
    records = read_records(shop / "data" / "items.jsonl")
    with wave.open(str(shop / "data" / "tone.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))
    records[1]["audio"] = "tone.wav"
    write_records(shop / "data" / "items.jsonl", records)
    models = [AppModel(str(shop / name), shop / "data", "cpu") for name in ("both", "alone")]
    page = launch(models, "127.0.0.1", None, wait=False)
    yield page.local_url
    page.close()


@pytest.fixture
def page(browser, url, request):
    """The page, freshly opened; whatever the console says is a failure."""
    size, scheme = getattr(request, "param", ("desk", "light"))
    context = browser.new_context(viewport=SIZES[size], color_scheme=scheme)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.set_default_timeout(20_000)
    page.goto(url)
    page.add_style_tag(
        content=".pending, .bm-wait { opacity: 1 !important }"
    )  # pale for a moment, while it is awaited
    sync_api.expect(page.get_by_role("heading", name="Your bundle")).to_be_visible()
    yield page
    context.close()
    assert not [line for line in said if line.startswith("error")]


def check_accessible(page):
    """No part of the page has a serious fault, by axe."""
    assert serious_faults(page) == []


def answers(page):
    return page.locator("#bm-answers .bm-column").first.locator(".bm-answer")


def pick_three(page):
    for number in range(3):
        page.get_by_role("button", name=re.compile("^Add ")).nth(number).click()
        sync_api.expect(page.locator(".bm-chip")).to_have_count(number + 1)
    sync_api.expect(answers(page)).to_have_count(10)


@pytest.mark.parametrize("page", [(size, s) for size in SIZES for s in ("light", "dark")], ids="-".join, indirect=True)
def test_someone_completes_a_bundle_under_a_rule_and_tries_an_own_item(page, shop):
    check_accessible(page)
    pick_three(page)
    check_accessible(page)
    sync_api.expect(answers(page).first).to_contain_text("LLM")
    sync_api.expect(page.locator("#bm-answers h3")).to_have_count(2)

    page.locator(".bm-fold > button", has_text="Rules").click()
    page.get_by_label("Condition").fill('category == "bag"')
    check_accessible(page)
    page.get_by_role("button", name="Apply rules").click()
    sync_api.expect(answers(page)).to_have_count(4)
    for category in answers(page).locator(".bm-sub").all_text_contents():
        assert category.strip().startswith("bag")
    sync_api.expect(page.locator(".bm-note").first).to_contain_text("answers instead of 10")

    page.locator(".bm-fold > button", has_text="Try an item of your own").click()
    page.get_by_label("Title of your item").fill(EVIL)
    page.set_input_files("input[type=file]", shop / "data" / "images" / "0.png")
    sync_api.expect(page.locator(".bm-fold img")).to_be_visible()
    check_accessible(page)
    page.get_by_role("button", name="See where it ranks").click()
    own = answers(page).locator("xpath=self::*[contains(@class, 'bm-own')]")
    sync_api.expect(own).to_contain_text("<img src=x")
    sync_api.expect(own).to_contain_text(re.compile(r"your item, \d+ of 5"))
    assert page.evaluate("window.hacked") is None
    check_accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_page_is_used_by_keyboard_alone(page):
    page.get_by_label("Search").focus()
    page.keyboard.type("blue bag")
    sync_api.expect(page.locator(".bm-card")).to_have_count(1)
    for _ in range(6):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.action") == "add":
            break
    page.keyboard.press("Enter")
    sync_api.expect(page.locator(".bm-chip")).to_have_count(1)
    assert page.evaluate("document.activeElement.textContent.trim()") == "✓ Added"
    page.keyboard.press("Enter")
    sync_api.expect(page.locator(".bm-chip")).to_have_count(0)


def test_wrong_rules_are_explained_and_nothing_is_lost(page):
    pick_three(page)
    page.locator(".bm-fold > button", has_text="Rules").click()
    page.get_by_label("Condition").fill("price <")
    page.get_by_role("button", name="Apply rules").click()
    sync_api.expect(page.get_by_role("alert")).to_contain_text("cannot be read")
    sync_api.expect(page.locator(".bm-chip")).to_have_count(3)
    page.get_by_label("Condition").fill("prize < 3")
    page.get_by_role("button", name="Apply rules").click()
    sync_api.expect(page.get_by_role("alert").first).to_contain_text("no column 'prize'")
    check_accessible(page)
    page.get_by_role("button", name="Clear rules").click()
    sync_api.expect(answers(page)).to_have_count(10)


def test_sounds_are_played_and_pictures_shown(page):
    sound = page.locator(".bm-card audio")
    sync_api.expect(sound).to_have_count(1)
    assert sound.evaluate("async (audio) => { await audio.play(); return audio.duration }") == 1
    first = page.locator(".bm-card img").first
    assert first.evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 8
    assert first.get_attribute("alt") == "Picture of red shirt"
