"""The reference names every public name, the navigation every page, and links lead somewhere."""

import re
from pathlib import Path

import pytest
import yaml

import bundle_mllm

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_the_reference_has_every_public_name():
    shown = {
        name.rpartition(".")[2]
        for page in (DOCS / "api").glob("*.md")
        for name in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert set(dir(bundle_mllm)) <= shown


def test_the_navigation_has_every_page():
    text = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    pages = re.findall(r"[\w/]+\.md", str(yaml.safe_load(text)["nav"]))
    assert sorted(pages) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def anchors_of(page):
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


OUTSIDE = [*ROOT.glob("*.md"), ROOT / "benchmarks/README.md", *(ROOT / "examples").glob("*.ipynb")]


@pytest.mark.parametrize("page", OUTSIDE, ids=lambda page: page.name)
def test_links_of_pages_outside_the_site_lead_somewhere(page):
    """Those of the site are checked by `mkdocs build --strict`."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not re.match(r"https?:|{", target):
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors_of(linked), target
