"""Chromium without a window, and what every page has to hold to."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SIZES = {"desk": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}


def serious_faults(page):
    """The serious faults that axe finds on a page, with the element of each."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs bundle-mllm[browser]")
    faults = [each for each in axe.Axe().run(page).response["violations"] if each["impact"] in ("serious", "critical")]
    return [(each["id"], node["html"][:200]) for each in faults for node in each["nodes"]]


def check_static_page(browser, path, size, scheme):
    """Check that a page says nothing on the console, loads nothing, fits the screen and has no serious fault.

    Returns:
        The page, still open.
    """
    context = browser.new_context(viewport=SIZES[size], color_scheme=scheme)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("[...document.images].every(each => each.complete && each.naturalWidth > 0 && each.alt)")
    assert page.evaluate("window.hacked") is None
    assert serious_faults(page) == []
    assert all(url.startswith(("data:", "file:")) for url in asked) and not said
    return page
