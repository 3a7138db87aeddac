"""What a chat template writes around a message: it comes with a model, so it is rendered once, with bounds.

Knows nothing about questions or items.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

MAX_SECONDS, MAX_BYTES, MAX_CHARACTERS = 2, 1 << 29, 1_000_000
"""Processor time, memory and length of what a template writes (ours)."""
MAX_WAIT = 30
"""Seconds until a process that renders a template is ended, also if it uses no processor time (ours)."""
_MESSAGE = "\ue000message\ue001"


def around_message(tokenizer: Any) -> tuple[str, str]:
    """Return what a tokenizer's chat template writes before and after the message of a user.

    The template sees a placeholder instead of a message, so that what it does does not depend on messages. It is
    rendered in a process of its own where the system can fork.

    Raises:
        ValueError: If the template fails, takes too much time or memory, or does not write the message once.
    """
    messages = [{"role": "user", "content": _MESSAGE}]

    def render() -> str:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    try:
        text = _bounded(render) if hasattr(os, "fork") else render()
    except Exception as error:  # a template may raise anything
        raise ValueError(
            f"The chat template cannot be rendered ({' '.join(str(error).split())[:300]}): restore "
            "chat_template.jinja, or set conversational=False."
        ) from error
    parts = text.split(_MESSAGE)
    if len(parts) != 2:
        raise ValueError(
            f"The chat template writes the message of a user {len(parts) - 1} times, so questions cannot be asked in "
            "it: restore chat_template.jinja, or set conversational=False."
        )
    return parts[0], parts[1]


def _bounded(render: Callable[[], str]) -> str:
    """Call a function in a process of its own, which is ended when it takes too much time or memory."""
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as stream, selectors.DefaultSelector() as selector:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a lock of another thread stops the child at most
            pid = os.fork()
        if not pid:
            stream.close()
            _answer(render, writer)
        os.close(writer)
        selector.register(stream, selectors.EVENT_READ)
        answer, end = b"", time.monotonic() + MAX_WAIT
        try:
            while selector.select(max(0, end - time.monotonic())) and (part := stream.read(1 << 16)):
                answer += part
        finally:
            with suppress(ProcessLookupError, ChildProcessError):  # another part of the program may wait for children
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    if not answer:
        raise RuntimeError(
            f"it takes more than {MAX_SECONDS} seconds, {MAX_WAIT} if the machine is busy, or {MAX_BYTES >> 20} MiB"
        )
    is_text, text = json.loads(answer)
    if not is_text:
        raise RuntimeError(text)
    return text


def _answer(render: Callable[[], str], writer: int) -> NoReturn:
    """Write a text, or why there is none, and end this process."""
    import resource

    try:
        resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
        if os.path.exists("/proc/self/statm"):
            with open("/proc/self/statm") as stream:
                now = int(stream.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + MAX_BYTES, now + MAX_BYTES))
        try:
            text = render()
            answer = (True, text) if len(text) <= MAX_CHARACTERS else (False, f"it writes {len(text)} characters")
        except Exception as error:
            answer = (False, str(error) or type(error).__name__)
        with open(writer, "w", encoding="utf-8") as stream:
            json.dump(answer, stream)
    finally:
        os._exit(0)
