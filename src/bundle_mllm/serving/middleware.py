"""What holds for every request: an id, a line in the log, counts, and limits on the size and time of its body.

Knows nothing about routes or models.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bundle_mllm.serving.metrics import Metrics

logger = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"
_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)


def problem(status: int, message: str, scope: Scope, headers: dict[str, str] | None = None) -> Response:
    """Return the answer that says in one line why there is no other."""
    content = json.dumps({"message": message, "request_id": scope["state"]["request_id"]})
    return Response(content, status, headers, "application/json")


class RequestLog:
    """Gives each request an id, writes a line when it is answered, and answers 500 where something is broken."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        fields: dict[str, Any] = {"request_id": request_id}
        scope.setdefault("state", {}).update(request_id=request_id, log=fields)
        start, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID], headers["X-Content-Type-Options"] = request_id, "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except Exception:
            logger.exception("a request failed", extra={"fields": fields})
            if status:  # part of the answer is sent: end the connection
                raise
            message = "Something is broken here; the service's log says where, under the id of the request."
            await problem(500, message, scope)(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, scope["method"], status).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            fields |= {"method": scope["method"], "route": route, "status": status, "ms": round(1000 * seconds, 1)}
            logger.info("request", extra={"fields": fields})


class EarlyRefusal:
    """Refuses requests to some paths before their bodies are read, which costs more than to refuse them."""

    def __init__(self, app: ASGIApp, paths: Collection[str], refusal: Callable[[Scope], Awaitable[Response | None]]):
        self._app, self._paths, self._refusal = app, paths, refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        refusal = await self._refusal(scope) if scope["type"] == "http" and scope["path"] in self._paths else None
        await (refusal or self._app)(scope, receive, send)


class BodyLimit:
    """Reads the body of each request before the request is handled, up to a size and within a time."""

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float):
        self._app, self._max_bytes, self._seconds = app, max_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self._seconds):
                while more and max(len(body), int(length)) <= self._max_bytes:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
        except TimeoutError:
            text = f"The request did not arrive within {self._seconds:g} s: send it again."
            await problem(408, text, scope, {"Connection": "close"})(scope, receive, send)
            return
        if more or len(body) > self._max_bytes:
            text = f"The request has more than {self._max_bytes:,} bytes: send fewer items at once, smaller pictures."
            await problem(413, text, scope, {"Connection": "close"})(scope, receive, send)
            return
        is_read = False

        async def replay() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self._app(scope, replay, send)
