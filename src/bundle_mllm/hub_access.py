"""Reach the Hub, or say at once and in one line why not.

Knows nothing about what is loaded from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def give_up_early() -> None:
    """Let a Hub that cannot be reached at all count as "offline", as of the first request.

    Libraries then use what is in the cache, or raise an error. Without this they ask six times and wait 23 seconds for
    each file. Once the Hub was reached, requests that fail are repeated as always.
    """
    from huggingface_hub import get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    session: Any = get_session()  # of httpx or httpx2, as the version of huggingface_hub has it
    send, was_reached = session.send, False

    def send_or_give_up(request: Any, **options: Any) -> Any:
        nonlocal was_reached
        try:
            response = send(request, **options)
        except Exception as error:
            if was_reached or type(error).__name__ not in ("ConnectError", "ConnectTimeout"):
                raise
            raise OfflineModeIsEnabled(f"{request.url.host} cannot be reached ({error})") from error
        was_reached = True
        return response

    session.send = send_or_give_up


def hub_problem(error: BaseException) -> str | None:
    """Return in a few words what was wrong with a name on the Hub, or `None` where an error has another cause."""
    from huggingface_hub import errors

    for each in _causes(error):
        if isinstance(each, errors.GatedRepoError):
            return "access to it must be asked for on the Hub, and needs `hf auth login`"
        if isinstance(each, errors.RepositoryNotFoundError):
            return "the Hub has no such repository, or it is private and needs `hf auth login`"
        if isinstance(each, errors.RevisionNotFoundError):
            return "the repository has no such revision"
        if isinstance(each, errors.OfflineModeIsEnabled):
            reason = "HF_HUB_OFFLINE is set" if "offline mode" in str(each) else str(each)
            return f"it is not in the cache, and {reason}"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
