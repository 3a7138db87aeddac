"""The one exception the package raises for a mistake its user can fix, and checks whose messages are shared.

Knows nothing about where a mistake is: the caller gives the name of what it checks.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class BundleMLLMError(ValueError):
    """A mistake in a file, value or option; the message names it, its consequence and how to fix it."""


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Check that a value is one of several.

    Raises:
        BundleMLLMError: If it is another one.
    """
    choices = list(choices)
    if value not in choices:
        raise BundleMLLMError(f"{name} is {value!r}: choose one of {', '.join(map(repr, choices))}.")


def check_at_least(name: str, value: float, least: float, consequence: str) -> None:
    """Check that a number is not too small; the consequence of a smaller one is such as "no question would be made".

    Raises:
        BundleMLLMError: If it is smaller.
    """
    if not value >= least:
        raise BundleMLLMError(f"{name} is {value}, so {consequence}: choose {least} or more.")


def did_you_mean(name: str, names: Iterable[str], otherwise: str) -> str:
    """Return the end of a message about an unknown name: the names that are like it, or `otherwise` and all names."""
    names = list(names)
    folded = {each.casefold(): each for each in names}
    alike = [folded[each] for each in get_close_matches(name.casefold(), folded, n=3)]
    if alike:
        return f"did you mean {' or '.join(map(repr, alike))}?"
    return f"{otherwise} {', '.join(map(repr, names[:20]))}{', …' if len(names) > 20 else ''}."
