"""Turn the texts of shops into plain ones: without HTML, entities and blanks at their ends.

Knows nothing about items or what a text says.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

_INLINE = "a abbr b bdi bdo big cite code del em font i ins kbd mark q s samp small span strike strong sub sup tt u"
_BLOCK = (
    "address article aside blockquote body br button caption center col colgroup dd details dialog dir div dl dt "
    "embed fieldset figcaption figure footer form frame h1 h2 h3 h4 h5 h6 header hr html iframe img input label "
    "legend li link main map area meta nav noscript object ol optgroup option p param path picture pre section select "
    "source summary svg table tbody td textarea tfoot th thead time tr track ul var video audio wbr"
)
_BLOCKS = frozenset(_BLOCK.split())
_UNSEEN = frozenset({"script", "style", "head", "title", "template"})
_TAGS = _BLOCKS | _UNSEEN | frozenset(_INLINE.split())
_MARKUP = re.compile(
    rf"</?(?:{'|'.join(sorted(_TAGS))})(?:[\s/][^<>]*)?>|<!--|&(?:#\d|#[xX][0-9a-fA-F]|[a-zA-Z])", re.I
)
_ENCODINGS = 3  # exports of exports: &amp;amp;


def clean_text(text: str) -> str:
    """Return a text without HTML tags and comments, with characters in place of entities, and without blanks around.

    Only names of HTML are tags: `<M>` and `a < b` stay. Scripts and styles go with what they hold. A text of blocks
    becomes one line; a text without markup keeps its line ends.
    """
    if not _MARKUP.search(text):
        return text.strip()
    for _ in range(_ENCODINGS):
        parser = _Text()
        parser.feed(text)
        parser.close()
        cleaned = "".join(parser.parts)
        if cleaned == text:
            break
        text = cleaned
    return " ".join(text.split())


class _Text(HTMLParser):
    """Gathers what a browser would show."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._unseen = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _UNSEEN:
            self._unseen += 1
        elif tag not in _TAGS:
            self.handle_data(self.get_starttag_text() or "")
        elif tag in _BLOCKS:
            self.parts.append(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _UNSEEN:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag in _UNSEEN:
            self._unseen = max(0, self._unseen - 1)
        elif tag not in _TAGS:
            self.handle_data(f"</{tag}>")
        elif tag in _BLOCKS:
            self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self.parts.append(data)


def split_list(text: str, separator: str) -> list[str]:
    r"""Cut a cell such as `"red, blue"` at a separator; `\,` is a comma within an entry, as WooCommerce writes it."""
    parts = re.split(rf"(?<!\\){re.escape(separator)}", text)
    return [clean for part in parts if (clean := clean_text(part.replace(f"\\{separator}", separator)))]


def split_paths(text: str, separator: str | None = ",") -> list[list[str]]:
    """Cut a cell of category paths such as `"Clothing > Shirts, Sale"`: each path from the root to the leaf.

    Without a separator the cell is one path.
    """
    text = text.replace("&gt;", ">")
    paths = (split_list(path, ">") for path in ([text] if separator is None else split_list(text, separator)))
    return [path for path in paths if path]
