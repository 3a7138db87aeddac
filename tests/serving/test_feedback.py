"""What users did with answers becomes training bundles."""

import pytest

from bundle_mllm.completion.item_table import read_item_table
from bundle_mllm.data.bundles import BundleSplits
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.tables import read_records
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.serving.feedback import write_feedback

BUNDLE = ["red-shirt", "red-skirt"]


def complete(client, partial=BUNDLE):
    return client.post("/v1/complete", json={"partial": partial, "top_k": 3}).json()


def note(client, answer, **what):
    return client.post("/v1/feedback", json={"answer_id": answer["answer_id"], **what})


def test_bought_answers_complete_their_bundles(model, start, tmp_path):
    log, output = tmp_path / "log.jsonl", tmp_path / "bundles.jsonl"
    with start(model, log=log) as client:
        answers = [complete(client) for _ in range(4)]
        ids = [item["item_id"] for item in answers[0]["items"]]
        assert note(client, answers[0], shown=ids, clicked=ids[:2], bought=ids[:1]).status_code == 202
        assert note(client, answers[0], bought=[ids[2], "never shown"]).status_code == 202
        note(client, answers[1], clicked=ids[:1])
        note(client, answers[2], bought=[ids[2], ids[0]])  # the same bundle again
        note(client, complete(client, [*BUNDLE, {"title": "linen hat"}]), bought=ids)
        note(client, {"answer_id": "0" * 32}, bought=ids)
        assert note(client, {"answer_id": "../x"}).status_code == 422
        assert client.post("/v1/feedback", json={"bought": ids}).status_code == 422
    summary = write_feedback(log=log, output=output)
    first = {"bundle_id": f"feedback-{answers[0]['answer_id']}", "items": [*BUNDLE, ids[0], ids[2]], "split": "train"}
    assert read_records(output) == [first]
    assert (summary.answers, summary.with_feedback, summary.bundles) == (5, 4, 1)
    assert (summary.unknown, summary.without_id) == (1, 1)
    assert write_feedback(log=log, output=output, clicked=True).bundles == 3
    catalog = ItemCatalog.from_records(read_item_table(model))
    assert len(BundleSplits.load(output, catalog)["train"]) == 3
    assert "linen hat" not in log.read_text()


def test_feedback_without_a_log_is_refused(client):
    answer = note(client, complete(client), bought=["red-hat"])
    assert answer.status_code == 409 and "--log" in answer.json()["message"]


def test_a_full_disk_is_said_and_answers_go_on(model, start):
    with start(model, log="/dev/full") as client:
        answer = complete(client)
        assert len(answer["items"]) == 3
        assert note(client, answer, bought=["red-hat"]).status_code == 503
        assert "bundle_mllm_unwritten_records_total 1.0" in client.get("/metrics").text


def test_a_log_without_purchases_is_said(model, start, tmp_path):
    with start(model, log=tmp_path / "log.jsonl") as client:
        note(client, complete(client), clicked=["red-hat"])
    with pytest.raises(BundleMLLMError, match="nothing of them was bought"):
        write_feedback(log=tmp_path / "log.jsonl", output=tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"[]",
        b'{"answer_id": 1}',
        b'{"answer_id": "a", "items": "x"}',
        b'{"answer_id": "a", "items": []}',
        b"\xff",
    ],
)
def test_a_file_that_is_no_log_is_refused_by_its_line(tmp_path, line):
    (tmp_path / "log.jsonl").write_bytes(line + b"\n")
    with pytest.raises(BundleMLLMError, match=r"neither an answer nor feedback|UTF-8"):
        write_feedback(tmp_path / "log.jsonl", tmp_path / "bundles.jsonl")
