"""The HTTP interface of a model: routes, key, limits, and which status says what.

Knows nothing about how a question is answered or a catalog is changed.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import Scope

from bundle_mllm import __version__
from bundle_mllm.data.catalog import MEDIA
from bundle_mllm.data.json_text import parse_json
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.serving import schema
from bundle_mllm.serving.batching import BusyError, StoppingError
from bundle_mllm.serving.middleware import BodyLimit, EarlyRefusal, RequestLog, problem
from bundle_mllm.serving.served_model import Asked, NoRankerError, ServedModel
from bundle_mllm.serving.service import Identified, Service
from bundle_mllm.serving.settings import MEBIBYTE, ServiceSettings

LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")
"""This machine's own names."""
BODY_SECONDS = 10.0
"""Time within which a request must have arrived (ours)."""
REFUSAL_SECONDS = 0.25
"""Time after which a question is refused, so that clients that do not heed it leave time to answer (ours)."""
QUESTIONS = ("/v1/complete", "/v1/rerank", "/v2/rerank")
"""Routes whose requests wait for the model."""
_BEARER = HTTPBearer(auto_error=False, description="The service's key, where it has one.")
_MESSAGES = {
    400: "The request is no JSON.",
    401: "The key is missing or wrong.",
    408: "The request did not arrive in time.",
    413: "The request is too large.",
    422: "The request cannot be read, or asks for what there is not.",
    429: "Too many requests wait; `Retry-After` says when to try again.",
    503: "The service is stopping, cannot write, or its ranker does not answer; try again.",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.Problem, "description": text} for status, text in _MESSAGES.items()
}


def _service(request: Request) -> Service:
    return request.app.state.service


def _check_key(request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
    """Refuse a request without the key, in a time that does not depend on how much of it is right."""
    key: str | None = request.app.state.key
    if key is not None and not hmac.compare_digest((given.credentials if given else "").encode(), key.encode()):
        raise HTTPException(401, "Give the service's key: Authorization: Bearer KEY.", {"WWW-Authenticate": "Bearer"})


Served = Annotated[Service, Depends(_service)]
open_routes = APIRouter()
routes = APIRouter(dependencies=[Depends(_check_key)], responses=PROBLEMS)


@open_routes.get("/healthz", tags=["state"])
async def health() -> dict[str, str]:
    """Say that the process is there."""
    return {"status": "ok", "version": __version__}


@open_routes.get("/readyz", tags=["state"], responses={503: PROBLEMS[503]})
async def readiness(service: Served) -> dict[str, Any]:
    """Say whether questions are taken."""
    if not service.is_ready:
        raise StoppingError
    return {"status": "ready", "num_items": service.model.num_items}


@routes.get("/metrics", tags=["state"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(service: Served) -> Response:
    """Return counts and times in Prometheus' text format."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@routes.post("/v1/complete", tags=["answers"])
async def complete(body: schema.CompletionRequest, request: Request, service: Served) -> schema.CompletionAnswer:
    """Complete a bundle: out of the whole catalog or of candidates, under rules."""
    asked = Asked(
        _entries(body.partial),
        None if body.candidates is None else _entries(body.candidates),
        {} if body.rules is None else body.rules.model_dump(exclude_unset=True),
        body.top_k,
        body.page,
        body.explain,
        body.coverage,
    )
    answer_id, answers = await _answer(asked, request, service)
    items = [schema.CompletedItem(**item) for item in answers.items]
    notes = list(answers.notes)
    return schema.CompletionAnswer(
        answer_id=answer_id, items=items, notes=notes, unranked=answers.unranked, set_size=answers.set_size
    )


@routes.post("/v1/rerank", tags=["answers"])
@routes.post("/v2/rerank", include_in_schema=False)
async def rerank(body: schema.RerankRequest, request: Request, service: Served) -> schema.RerankAnswer:
    """Rank documents as rerankers of Cohere and Jina do: their clients work with this route."""
    texts = [each if isinstance(each, str) else each.text for each in body.documents]
    places: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        places.setdefault(text, []).append(place)
    new = set(await run_in_threadpool(service.model.unknown, list(places)))  # which may load changed items
    names = {f"document {number}": text for number, text in enumerate(places) if text in new}
    named = {text: name for name, text in names.items()}
    candidates = [{"item_id": named[text], "title": text} if text in new else text for text in places]
    asked = Asked(_bundle(body.query), candidates, top_k=len(candidates))
    answer_id, answers = await _answer(asked, request, service)
    results = [
        schema.RerankResult(
            index=place,
            relevance_score=item["score"],
            document={"text": texts[place]} if body.return_documents else None,
        )
        for item in answers.items
        for place in places[names.get(item["item_id"]) or item["item_id"]]
    ]
    model = body.model or service.settings.model.name
    results = results[: body.top_n]
    return schema.RerankAnswer(id=answer_id, model=model, results=results, unranked=answers.unranked)


@routes.get("/v1/items/{item_id:path}", tags=["items"], responses={404: {"model": schema.Problem}})
def get_item(item_id: str, service: Served) -> dict[str, Any]:
    """Return an item with its columns."""
    if (item := service.model.item(item_id)) is None:
        raise HTTPException(404, f"There is no item {item_id!r}: check the id.")
    return item


@routes.put("/v1/items", tags=["items"])
def put_items(body: schema.ItemsRequest, service: Served) -> schema.ItemsAnswer:
    """Add items, and change the columns given of those that there are; all or none."""
    items = [item.given() for item in body.items]
    return schema.ItemsAnswer(**asdict(service.put_items(items)))


@routes.delete("/v1/items", tags=["items"], responses={404: {"model": schema.Problem}})
def delete_items(
    item_id: Annotated[list[schema.Id], Query(min_length=1, max_length=schema.MAX_ITEMS)], service: Served
) -> schema.ItemsAnswer:
    """Remove items, all or none."""
    if unknown := service.model.unknown(item_id):
        raise HTTPException(404, f"There is no item {unknown[0]!r}, so none was removed: check the ids.")
    return schema.ItemsAnswer(**asdict(service.remove_items(item_id)))


@routes.post("/v1/feedback", tags=["answers"], status_code=202, responses={409: {"model": schema.Problem}})
def feedback(body: schema.FeedbackRequest, service: Served) -> dict[str, str]:
    """Note what a user did with an answer; `bundle-mllm feedback` makes training bundles of it."""
    if service.log is None:
        raise HTTPException(409, "The service keeps no log, so this would be lost: start it with --log FILE.")
    try:
        service.log.append([{**body.model_dump(exclude_none=True), "time": round(time.time(), 3)}])
    except OSError as error:
        raise HTTPException(503, f"It cannot be written ({error.strerror}): try again later.") from error
    return {"status": "noted"}


async def _answer(asked: Asked, request: Request, service: Service) -> Identified:
    log = request.state.log
    log |= {"num_partial": len(asked.partial), "num_candidates": len(asked.candidates or ())}
    if service.settings.log_content:
        log["partial"] = [_without_files(entry) for entry in asked.partial]
    answer_id, answers = await service.ask(asked)
    log["answer_id"] = answer_id
    return answer_id, answers


def _entries(entries: list[str | schema.NewItem]) -> list[Any]:
    return [entry if isinstance(entry, str) else entry.given() for entry in entries]


def _without_files(entry: Any) -> Any:
    return {name: value for name, value in entry.items() if name not in MEDIA} if isinstance(entry, dict) else entry


def _bundle(query: str) -> list[Any]:
    """Return the partial bundle that a query names: a JSON list of ids, or an item whose title the words are."""
    if not query.lstrip().startswith("["):
        return [{"title": query}]
    ids = parse_json(query, "The query")
    if not ids or not all(isinstance(each, str) for each in ids):
        raise BundleMLLMError(
            'The query is a JSON list, but not of ids: write it as ["a12", "b7"], or as plain words.'
        )
    return ids


def _too_many(scope: Scope, error: BusyError) -> Response:
    return problem(429, "Too many requests wait: try again later.", scope, {"Retry-After": str(error.retry_after)})


def _of_validation(request: Request, error: Any) -> Response:
    """Name what does not fit, without repeating what was sent."""
    places = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    return problem(422, "; ".join(places[:3]) + (" …" if len(places) > 3 else ""), request.scope)


def _of_mistake(request: Request, error: Exception) -> Response:
    """Say what is wrong, but not where the model is."""
    folder = str(_service(request).settings.model)
    return problem(422, str(error).replace(folder, "the model folder"), request.scope)


_ANSWERS: dict[type[Exception], Callable[[Request, Any], Response]] = {
    RequestValidationError: _of_validation,
    BundleMLLMError: _of_mistake,
    HTTPException: lambda request, error: problem(error.status_code, str(error.detail), request.scope, error.headers),
    BusyError: lambda request, error: _too_many(request.scope, error),
    NoRankerError: lambda request, _: problem(
        503, "The ranker does not answer, and there is no retriever that could.", request.scope, {"Retry-After": "5"}
    ),
    StoppingError: lambda request, _: problem(
        503, "The service is stopping: try again.", request.scope, {"Retry-After": "1"}
    ),
}


def create_app(settings: ServiceSettings, model: ServedModel, key: str | None = None) -> FastAPI:
    """Return the application.

    Args:
        settings: The settings.
        model: The model.
        key: What requests must name; nothing if not given, and then the service answers to this machine's names alone.
    """
    service = Service(settings, model)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="bundle-mllm",
        version=__version__,
        description="Which item completes a bundle? Each answer is a probability.",
        lifespan=running,
    )
    app.state.service, app.state.key = service, key
    app.include_router(open_routes)
    app.include_router(routes)
    app.add_middleware(BodyLimit, settings.max_body_mib * MEBIBYTE, BODY_SECONDS)

    async def refusal(scope: Scope) -> Response | None:
        if (error := service.busy()) is None:
            return None
        await asyncio.sleep(REFUSAL_SECONDS)
        return _too_many(scope, error)

    app.add_middleware(EarlyRefusal, QUESTIONS, refusal)
    if key is None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))
    app.add_middleware(RequestLog, service.metrics)
    for error, answer in _ANSWERS.items():
        app.add_exception_handler(error, answer)
    return app
