"""A ranker that runs elsewhere and does not answer: the retriever does, and says so; without one the status is 503."""

import shutil

import pytest
from fastapi.testclient import TestClient

from bundle_mllm.interop.export import export_stock
from bundle_mllm.model_folder import load_completer
from bundle_mllm.modeling import BundleCompleter
from bundle_mllm.serving.app import create_app
from bundle_mllm.serving.served_model import ServedModel
from bundle_mllm.serving.settings import ServiceSettings

NOBODY = "openai:http://127.0.0.1:9/v1?timeout=1&retries=0#exported"
QUESTION = {"partial": ["red-shirt"], "candidates": ["red-hat", "blue-hat", "red-bag"]}


@pytest.fixture
def exported(model, tmp_path):
    export_stock(model, tmp_path / "stock")
    return model


def client_of(folder):
    settings = ServiceSettings(folder, ranker=NOBODY)
    return TestClient(create_app(settings, ServedModel(folder, ranker=NOBODY)), "http://localhost")


def test_the_retriever_answers_and_says_why(exported, caplog):
    loaded = load_completer(exported)
    alone = BundleCompleter(loaded.processor, retriever=loaded.retriever).complete(QUESTION)
    with client_of(exported) as client:
        answer = client.post("/v1/complete", json=QUESTION).json()
        assert [(item["item_id"], item["score"]) for item in answer["items"]] == [
            (item["item_id"], pytest.approx(item["score"], abs=1e-5)) for item in alone
        ]
        assert answer["unranked"] and answer["unranked"] in answer["notes"][0]
        ranked = client.post("/v1/rerank", json={"query": "red shirt", "documents": ["red-hat", "blue-hat"]}).json()
        assert len(ranked["results"]) == 2 and ranked["unranked"]
        assert "bundle_mllm_unranked_answers_total 2.0" in client.get("/metrics").text
        assert client.get("/readyz").status_code == 200


def test_without_a_retriever_there_is_no_answer_now(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "ranker", ignore=shutil.ignore_patterns("retriever", "combination*"))
    with client_of(folder) as client:
        answer = client.post("/v1/complete", json=QUESTION)
        assert answer.status_code == 503 and "retry-after" in answer.headers
        assert client.post("/v1/complete", json={"partial": ["none"]}).status_code == 422
