"""What holds for every request: how large it may be, how long it may take to arrive, and its id."""

import asyncio
import json

import pytest

from bundle_mllm.serving.metrics import Metrics
from bundle_mllm.serving.middleware import BodyLimit, RequestLog


def request(*messages, headers=(), pause=0.0, seconds=60.0):
    """Send messages to an application that repeats the body; return the status, the headers and what it says."""
    waiting, sent = iter(messages), []

    async def receive():
        await asyncio.sleep(pause)
        return next(waiting)

    async def send(message):
        sent.append(message)

    async def repeat(scope, receive, send):
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    application = RequestLog(BodyLimit(repeat, max_bytes=10, seconds=seconds), Metrics())
    scope = {"type": "http", "method": "POST", "path": "/", "headers": list(headers)}
    asyncio.run(application(scope, receive, send))
    if not sent:
        return None
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def part(body, more=True):
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_arrives_whole():
    assert request(part(b"12345"), part(b"67890", more=False))[::2] == (200, b"1234567890")


@pytest.mark.parametrize(
    ("messages", "options", "status"),
    [
        ([part(b"12345"), part(b"678901", more=False)], {}, 413),
        ([part(b"12345"), part(b"678901"), part(b"never read")], {}, 413),
        ([part(b"never read")], {"headers": [(b"content-length", b"11")]}, 413),
        ([part(b"1")] * 9, {"pause": 0.03, "seconds": 0.1}, 408),
    ],
)
def test_a_large_or_slow_request_is_refused(messages, options, status):
    found, headers, body = request(*messages, **options)
    assert found == status and headers[b"connection"] == b"close"
    assert json.loads(body)["request_id"] == headers[b"x-request-id"].decode()


def test_a_client_that_has_gone_gets_nothing():
    assert request(part(b"12"), {"type": "http.disconnect"}) is None


@pytest.mark.parametrize(("given", "is_kept"), [("a-b.c:1", True), ("x" * 65, False), ("a b", False), ("é", False)])
def test_a_request_keeps_its_id_if_it_is_plain(given, is_kept):
    _, headers, _ = request(part(b"", more=False), headers=[(b"x-request-id", given.encode("latin-1"))])
    assert (headers[b"x-request-id"].decode() == given) == is_kept and headers[b"x-request-id"]
