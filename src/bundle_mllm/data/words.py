"""Split texts of any script into the words that methods compare.

Knows nothing about items, nor what the words are used for.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import pairwise

_LATIN_WORD = re.compile(r"[^\W_]+")
_INVISIBLE = re.compile(  # joiners, soft hyphens, marks of direction, variation selectors: as NFKC_Casefold does
    "[\u00ad\u034f\u061c\u180b-\u180f\u200c-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef]"
)
_IN_PAIRS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaadf"  # Thai, Lao, Khmer …
    "\u1100-\u11ff\u3005-\u3007\u3021-\u3029\u3031-\u303c\u3041-\u318f\u31a0-\u31ff\uac00-\ud7ff"  # kana, Hangul
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00016fe0-\U00018dff\U0001aff0-\U0001b16f\U00020000-\U0003ffff"  # Han
)
"""Scripts that put no blank between words, and Korean, whose words end in particles."""


def words(text: str) -> list[str]:
    """Split a text into words, in normal form (NFKC, folded case).

    A word is a run of letters and digits with their combining marks (vowel signs, points, accents). Chinese, Japanese,
    Korean, Thai, Lao, Khmer and Burmese runs give their overlapping pairs of characters, the usual unit of search in
    these scripts; a single character stands for itself.

    Args:
        text: Any text.

    Returns:
        The words in the order of the text: `"Red T恤衫衣"` gives `["red", "t", "恤衫", "衫衣"]`.
    """
    folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()
    folded = unicodedata.normalize("NFKC", folded)
    if max(folded, default="") < "\u0300":  # no combining marks
        return _LATIN_WORD.findall(folded)
    run, character = _patterns()
    split = []
    for word, unspaced in run.findall(folded):
        characters = character.findall(unspaced)
        split += [first + second for first, second in pairwise(characters)] or characters or [word]
    return split


@lru_cache(maxsize=1)
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return patterns of a run, (a word) or (characters in pairs), and of one character with its marks."""
    is_mark = (unicodedata.category(chr(code))[0] == "M" for code in range(0x20000))  # later planes have no others
    marks = "".join(chr(code) for code, mark in enumerate(is_mark) if mark)
    run = rf"((?:[^\W_{_IN_PAIRS}][{marks}]*)+)|((?:(?![\W_])[{_IN_PAIRS}][{marks}]*)+)"
    return re.compile(run), re.compile(rf"[^{marks}][{marks}]*")
