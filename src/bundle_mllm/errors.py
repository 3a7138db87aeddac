"""The one exception the package raises for a mistake its user can fix.

It must not know what went wrong: every message is written where the mistake is found.
"""


class BundleMLLMError(ValueError):
    """A mistake in a file, value or option; the message names it, says what follows and how to fix it."""
