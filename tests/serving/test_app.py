"""The HTTP interface: what is answered, and which status says what."""

import base64
import gc
import io
import json
import logging

import pytest
from PIL import Image

from bundle_mllm.completion.complete import load_ruled_completer
from bundle_mllm.completion.rules import Rules
from bundle_mllm.model_folder import load_completer
from bundle_mllm.modeling import BundleMLLMModel
from bundle_mllm.serving.batching import BusyError
from bundle_mllm.serving.item_changes import put_items, remove_items
from bundle_mllm.serving.served_model import Asked, ServedModel

BUNDLE = ["red-shirt", "red-skirt"]
KEY = "0123456789abcdef"
JSON = {"content-type": "application/json"}


def picture(color):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def complete(client, partial=BUNDLE, **body):
    return client.post("/v1/complete", json={"partial": partial, **body})


def scores(answer):
    assert answer.status_code == 200, answer.text
    return [(item["item_id"], item["score"]) for item in answer.json()["items"]]


def expected(model, partial=BUNDLE, top_k=10):
    ranked = load_completer(model).complete({"partial": partial}, top_k=top_k)
    return [(item["item_id"], pytest.approx(item["score"], abs=1e-5)) for item in ranked]


def test_answers_are_those_of_the_completer(client, model):
    assert scores(complete(client)) == expected(model)
    given = complete(client, candidates=["blue-hat", "red-hat"], explain=True).json()["items"]
    assert {item["item_id"]: item["letter"] for item in given} == {"blue-hat": "A", "red-hat": "B"}
    assert {"ranker", "retriever", "contributions"} <= set(given[0]["explanation"])
    assert sum(item["score"] for item in given) == pytest.approx(1, abs=1e-5)


def test_an_index_finds_the_items_that_are_there_now(model):
    served = ServedModel(model, retrieval="approximate")
    [before] = served.complete([Asked(BUNDLE, top_k=3)])
    assert [(item["item_id"], item["score"]) for item in before.items] == expected(model, top_k=3)
    remove_items(model, [before.items[0]["item_id"]])
    [after] = served.complete([Asked(BUNDLE, top_k=3)])
    assert [(item["item_id"], item["score"]) for item in after.items] == expected(model, top_k=3)
    assert before.items[0]["item_id"] not in [item["item_id"] for item in after.items]


def test_rules_are_those_of_the_library(client, model):
    rules = {
        "where": "in_stock and price < 30",
        "max_per_category": 1,
        "boost": {"price": 0.5},
        "excluded": ["red-bag"],
    }
    answer = complete(client, rules=rules, top_k=4, page=2)
    [by_library] = load_ruled_completer(model, Rules(**rules)).complete([{"partial": BUNDLE}], top_k=4, page=2)
    assert scores(answer) == [(i["item_id"], pytest.approx(i["score"], abs=1e-5)) for i in by_library.items]
    assert answer.json()["notes"] == list(by_library.notes) and by_library.notes


def test_a_new_item_is_encoded_as_the_library_encodes_it(client, model, tmp_path):
    new = {"title": "green hat", "category": "hat", "brand": "Gale", "item_id": "mine"}
    answer = complete(client, candidates=["green-hat", {**new, "image": picture("green")}, "blue-bag"])
    path = tmp_path / "green.png"
    path.write_bytes(base64.b64decode(picture("green")))
    question = {"partial": BUNDLE, "candidates": ["green-hat", {**new, "image": str(path)}, "blue-bag"]}
    [by_library] = load_ruled_completer(model).complete([question])
    assert scores(answer) == [(i["item_id"], pytest.approx(i["score"], abs=1e-5)) for i in by_library.items]
    other = complete(client, candidates=["green-hat", {**new, "image": picture("red")}, "blue-bag"])
    assert dict(scores(other))["mine"] != pytest.approx(dict(scores(answer))["mine"], abs=1e-5)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "body.partial: Field required"),
        ({"partial": []}, "at least 1 item"),
        ({"partial": ["none-such"]}, "Item 'none-such' is not among the 24 items"),
        ({"partial": [*BUNDLE, "red-shirt"]}, "more than once"),
        ({"partial": BUNDLE, "candidates": ["red-shirt"]}, "in the partial bundle already"),
        ({"partial": BUNDLE, "top_k": 0}, "top_k"),
        ({"partial": BUNDLE, "coverage": 1}, "less than 1"),
        ({"partial": BUNDLE, "coverage": 0.9}, "calibrate"),
        ({"partial": BUNDLE, "top_n": 3}, "body.top_n: Extra inputs are not permitted"),
        ({"partial": BUNDLE, "rules": {"where": "price <"}}, "The condition 'price <' cannot be read"),
        ({"partial": BUNDLE, "rules": {"allowed_file": "/etc/passwd"}}, "body.rules.allowed_file: Extra inputs"),
        ({"partial": BUNDLE, "rules": {"budget": float("inf")}}, "budget"),
        ({"partial": [{"title": "x", "image": "/etc/passwd"}]}, "Base64, no path or URL"),
        ({"partial": [{"title": "x", "image": "https://example.org/a.png"}]}, "Base64, no path or URL"),
        ({"partial": [{"title": "x", "audio": "a.wav"}]}, "Base64, no path or URL"),
        ({"partial": [{"title": "x", "image": "aGFsbG8="}]}, "not a picture"),
        ({"partial": [{"title": "x", "features": {"visual": [float("nan")]}}]}, "should be a finite number"),
        ({"partial": [{"title": "x", "price": float("nan")}]}, "should be a finite number"),
        ({"partial": ["\ud800"]}, "unable to parse raw data as a unicode string"),
        ({"partial": [{"title": "\ud800"}]}, "unable to parse raw data as a unicode string"),
        ({"partial": [{"title": "x", "sku": "1"}]}, "no encoder of the model folder reads"),
        ({"partial": ["x" * 5] * 1001}, "at most 1000 items"),
        ({"partial": ["x" * 1001]}, "at most 1000 characters"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_line(client, body, message):
    answer = client.post("/v1/complete", content=json.dumps(body), headers=JSON)
    assert answer.status_code == 422
    assert message in answer.json()["message"] and "\n" not in answer.json()["message"]
    assert "/tmp" not in answer.json()["message"]
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "\x00", '{"partial": 9' + "9" * 5000 + "}"])
def test_what_is_no_request_is_refused(client, text):
    answer = client.post("/v1/complete", content=text, headers=JSON)
    assert answer.status_code in (400, 422) and "message" in answer.json()


def test_one_bad_question_does_not_spoil_those_beside_it(client, model):
    served = client.app.state.service.model
    good, bad, odd = Asked(BUNDLE, top_k=10), Asked(["none"], top_k=10), Asked(BUNDLE, rules={"where": "none == 1"})
    found = served.complete([good, bad, odd, good])
    assert [isinstance(each, Exception) for each in found] == [False, True, True, False]
    assert [(item["item_id"], item["score"]) for item in found[3].items] == expected(model)


def test_a_key_is_asked_for(model, start):
    with start(model, KEY) as client:
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"Authorization": "Bearer é"}):
            encoded = {name: value.encode() for name, value in header.items()}
            answer = client.post("/v1/complete", json={"partial": BUNDLE}, headers=encoded)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        for path in ("/metrics", "/v1/items/red-hat"):
            assert client.get(path).status_code == 401
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        answer = client.post("/v1/complete", json={"partial": BUNDLE}, headers={"Authorization": f"Bearer {KEY}"})
        assert answer.status_code == 200


def test_without_a_key_the_service_answers_to_names_of_this_machine_alone(client):
    for host in ("shop.example.org", "testserver"):  # the latter is what Starlette's tests call it
        assert client.get("/healthz", headers={"host": host}).status_code == 400
    assert client.get("/healthz", headers={"host": "localhost:8000"}).status_code == 200


def test_the_body_is_limited(model, start):
    with start(model, max_body_mib=1) as client:
        large = b'{"partial": ["' + b"x" * (1 << 20) + b'"]}'
        assert client.post("/v1/complete", content=large, headers=JSON).status_code == 413
        assert client.post("/v1/complete", content=iter([large]), headers=JSON).status_code == 413
        assert client.post("/v1/complete", content=b"[" * 100_000_000, headers=JSON).status_code == 413


def test_a_million_ids_are_refused(client):
    million = {"partial": BUNDLE, "candidates": [f"{number:07}" for number in range(1_000_000)]}
    answer = client.post("/v1/complete", json=million)
    assert answer.status_code == 422 and "at most 1000 items" in answer.json()["message"]
    for rules in ({"excluded": million["candidates"]}, {"allowed": million["candidates"]}, {"where": "x" * 20_000}):
        assert complete(client, rules=rules).status_code == 422
    rules = {"excluded": million["candidates"][:10_000], "where": "price < 30 or price >= 30"}
    assert len(scores(complete(client, rules=rules))) == 10


def test_items_come_change_and_go(client, model):
    new = {
        "item_id": "a/b",
        "title": "<script>alert(1)</script>",
        "price": 3.5,
        "image": picture("red"),
        "tags": ["x"],
    }
    assert client.get("/v1/items/a/b").status_code == 404
    changed = client.put("/v1/items", json={"items": [new, {"item_id": "red-hat", "price": 99}]})
    assert changed.json() == {
        "added": 1, "updated": 1, "encoded": 1, "removed": 0, "num_items": 25, "unknown": [],
    }  # fmt: skip
    answer = client.get("/v1/items/a/b")
    assert answer.json() == {"item_id": "a/b", "title": new["title"], "price": 3.5, "tags": ["x"]}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/v1/items/red-hat").json()["price"] == 99
    assert scores(complete(client, top_k=30)) == expected(model, top_k=30) and len(expected(model, top_k=30)) == 23
    assert scores(complete(client, rules={"where": "price > 90"})) == [("red-hat", 1)]
    assert client.put("/v1/items", json={"items": [{"item_id": "red-hat", "price": None}]}).json()["updated"] == 1
    assert "price" not in client.get("/v1/items/red-hat").json()
    assert client.delete("/v1/items", params={"item_id": ["a/b", "red-hat"]}).json()["num_items"] == 23
    assert client.get("/v1/items/red-hat").status_code == 404
    assert client.delete("/v1/items", params={"item_id": ["red-bag", "none"]}).status_code == 404
    assert client.get("/v1/items/red-bag").status_code == 200
    assert client.get("/readyz").json()["num_items"] == 23


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"item_id": " "}, "match pattern"),
        ({"item_id": "n"}, "nothing but an id"),
        ({"item_id": "n", "image": "../secret.png"}, "Base64"),
        ({"item_id": "n", "title": "x", "image": "aGFsbG8="}, "not a picture"),
        ({"item_id": "n", "title": "x", "audio": "aGFsbG8="}, "The model reads no audio"),
        ({"item_id": "n", "title": "x", "price": float("inf")}, "finite"),
        ({"item_id": "n", "title": ["x"]}, "valid string"),
    ],
)
def test_an_item_that_cannot_be_used_changes_nothing(client, item, message):
    items = [{"item_id": "red-hat", "price": 1}, item]
    answer = client.put("/v1/items", content=json.dumps({"items": items}), headers=JSON)
    assert answer.status_code == 422 and message in answer.json()["message"], answer.text
    assert client.get("/v1/items/red-hat").json()["price"] != 1


def test_rerank_ranks_ids_and_texts(client):
    documents = ["blue-hat", "red hat", {"text": "red hat"}, "red-bag"]
    body = {"query": json.dumps(BUNDLE), "documents": documents, "model": "any", "return_documents": True}
    answer = client.post("/v1/rerank", json=body).json()
    assert sorted(result["index"] for result in answer["results"]) == [0, 1, 2, 3]
    score = {result["index"]: result["relevance_score"] for result in answer["results"]}
    assert score[1] == score[2] and list(score.values()) == sorted(score.values(), reverse=True)
    assert score[0] + score[1] + score[3] == pytest.approx(1, abs=1e-5)
    assert {result["index"]: result["document"]["text"] for result in answer["results"]}[2] == "red hat"
    wish = client.post("/v1/rerank", json={"query": "something red", "documents": documents[:2], "top_n": 1}).json()
    assert len(wish["results"]) == 1 and wish["results"][0]["document"] is None
    for query in ("[", "[1]", "[]", '["none"]', '["red-bag"]', ""):
        assert client.post("/v1/rerank", json={"query": query, "documents": documents}).status_code == 422


def test_the_log_holds_no_titles_and_no_items_unless_asked_for(model, start, caplog):
    logging.getLogger("bundle_mllm.serving").propagate = True
    for log_content in (False, True):
        caplog.clear()
        with caplog.at_level(logging.INFO, "bundle_mllm.serving"), start(model, log_content=log_content) as client:
            answer = complete(client, [*BUNDLE, {"title": "secret wish"}])
            client.post("/v1/complete", json={"partial": ["secret id"]}, headers={"x-request-id": "mine"})
        fields = [getattr(record, "fields", {}) for record in caplog.records]
        assert fields[0]["request_id"] == answer.headers["x-request-id"]
        assert fields[0]["answer_id"] == answer.json()["answer_id"]
        assert [each["request_id"] for each in fields][1:] == ["mine"]
        assert [(each["status"], each["route"], each["num_partial"]) for each in fields] == [
            (200, "/v1/complete", 3), (422, "/v1/complete", 1),
        ]  # fmt: skip
        assert ("red-shirt" in str(fields)) == ("secret" in str(fields)) == log_content


def test_what_is_broken_is_said_without_a_stack_trace(client, caplog):
    logging.getLogger("bundle_mllm.serving").propagate = True
    client.app.state.service.model.complete = lambda asked: 1 / 0
    answer = complete(client)
    assert answer.status_code == 500 and "under the id of the request" in answer.json()["message"]
    assert "Traceback" not in answer.text and "ZeroDivision" not in answer.text
    assert any(record.exc_info for record in caplog.records)


def test_metrics_count_requests(client):
    complete(client)
    complete(client, ["none"])
    text = client.get("/metrics").text
    assert 'bundle_mllm_requests_total{method="POST",route="/v1/complete",status="200"} 1.0' in text
    assert 'bundle_mllm_requests_total{method="POST",route="/v1/complete",status="422"} 1.0' in text
    assert "bundle_mllm_items 24.0" in text and "bundle_mllm_batch_questions_count 2.0" in text
    assert client.get("/nowhere").status_code == 404
    assert 'route="none",status="404"' in client.get("/metrics").text


def test_the_page_of_the_api_has_examples(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/healthz", "/readyz", "/metrics", "/v1/complete", "/v1/rerank", "/v1/items", "/v1/items/{item_id}",
        "/v1/feedback",
    }  # fmt: skip
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("CompletionRequest", "RerankRequest", "ItemsRequest", "FeedbackRequest"):
        assert schemas[name]["examples"]
    assert {"where", "budget", "boost"} <= set(schemas["Rules"]["properties"])
    assert not [name for name in schemas["Rules"]["properties"] if name.endswith("_file")]
    assert client.get("/docs").status_code == 200


def test_models_of_items_that_were_before_are_freed(model):
    """Models refer to themselves, so that many would be there until the collector comes round."""
    served = ServedModel(model)

    def count():
        return sum(type(each) is BundleMLLMModel for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = count()
        for number in range(3):
            put_items(model, [{"item_id": "new", "title": f"red hat {number}"}])
            served.complete([Asked(BUNDLE)])
        assert count() == before
    finally:
        gc.enable()


def test_a_question_is_refused_before_it_is_read_while_there_is_no_room(client, monkeypatch):
    monkeypatch.setattr(client.app.state.service, "busy", lambda: BusyError(7.2))
    for path in ("/v1/complete", "/v1/rerank", "/v2/rerank"):
        answer = client.post(path, content=b"no JSON")
        assert answer.status_code == 429 and answer.headers["retry-after"] == "8" and answer.json()["request_id"]
    assert client.get("/v1/items/red-hat").status_code == client.get("/healthz").status_code == 200
    monkeypatch.undo()
    assert client.app.state.service.busy() is None and complete(client).status_code == 200
