"""A service with several workers: many clients at once, items that change, workers that die, and a stop."""

import fcntl
import json
import random
import re
import shutil
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cohere
import httpx
import pytest
from service_process import service, wait_until
from transformers import pipeline

import bundle_mllm  # noqa: F401  registers the pipeline
from bundle_mllm.completion.catalog import update_catalog
from bundle_mllm.data.tables import write_records
from bundle_mllm.serving.answer_log import read_log

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef"
NEW = {"item_id": "new", "title": "red linen hat", "category": "hat", "price": 12}
BUNDLES = [["red-shirt"], ["red-bag", "red-hat"], ["blue-shirt"], ["blue-bag", "blue-hat"]]


@pytest.fixture(scope="module")
def folders(both_once, tmp_path_factory):
    """Three copies of a model: that of the service, one to compare with, and one with an item more."""
    folder = tmp_path_factory.mktemp("processes")
    served, plain, added = (shutil.copytree(both_once, folder / name) for name in ("served", "plain", "added"))
    write_records(folder / "items.jsonl", [NEW])
    update_catalog("add", added, folder / "items.jsonl")
    return served, plain, added


@pytest.fixture(scope="module")
def log(folders):
    return folders[0].parent / "log" / "answers.jsonl"


@pytest.fixture(scope="module")
def running(folders, log):
    log.parent.mkdir()
    options = ("--workers", "2", "--log", str(log), "--time-limit", "3600")
    with service(folders[0], *options, BUNDLE_MLLM_API_KEY=KEY) as running:
        yield running


def connect(running):
    return httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=600)


def complete(client, partial, **body):
    answer = client.post("/v1/complete", json={"partial": partial, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def scores(items):
    return [(item["item_id"], pytest.approx(item["score"], abs=1e-5)) for item in items]


def test_32_clients_get_the_answers_of_the_pipeline_while_items_come_and_go(running, folders):
    completers = [pipeline("bundle-completion", model=str(folder)) for folder in folders[1:]]
    expected = [[scores(completer({"partial": bundle}, top_k=30)) for bundle in BUNDLES] for completer in completers]
    done, counts = threading.Event(), [0, 0]

    def ask(number):
        rng = random.Random(number)
        with connect(running) as client:
            while not done.is_set():
                which = rng.randrange(len(BUNDLES))
                answer = complete(client, BUNDLES[which], top_k=30)["items"]
                found = [(item["item_id"], item["score"]) for item in answer]
                [state] = [state for state in (0, 1) if found == expected[state][which]]
                counts[state] += 1

    with ThreadPoolExecutor(32) as pool, connect(running) as client:
        clients = [pool.submit(ask, number) for number in range(32)]
        try:
            for _ in range(3):
                for state, answer in (
                    (1, lambda: client.put("/v1/items", json={"items": [NEW]})),
                    (0, lambda: client.delete("/v1/items", params={"item_id": "new"})),
                ):
                    assert answer().status_code == 200
                    for _ in range(4):  # of either worker
                        with connect(running) as other:
                            found = complete(other, BUNDLES[0], top_k=30)["items"]
                        assert [(item["item_id"], item["score"]) for item in found] == expected[state][0]
                    before = counts[state]
                    wait_until(lambda state=state, before=before: counts[state] >= before + 20)
        finally:
            done.set()
        for each in clients:
            each.result()
    assert min(counts) >= 60


def test_a_price_that_one_worker_changes_is_seen_by_both(running):
    for price in (91, 92, 93):
        with connect(running) as client:
            assert (
                client.put("/v1/items", json={"items": [{"item_id": "blue-coat", "price": price}]}).status_code == 200
            )
        for _ in range(6):
            with connect(running) as client:
                assert client.get("/v1/items/blue-coat").json()["price"] == price
                answer = complete(client, ["red-hat"], rules={"where": "price > 90"})
                assert [item["item_id"] for item in answer["items"]] == ["blue-coat"]


def test_the_client_of_cohere_ranks(running):
    for client in (cohere.Client, cohere.ClientV2):
        answer = client(KEY, base_url=running.url).rerank(
            model="any", query='["red-shirt", "red-skirt"]', documents=["blue-hat", "red-hat", "a linen hat"], top_n=2
        )
        assert len(answer.results) == 2 and answer.id
        assert 1 >= answer.results[0].relevance_score >= answer.results[1].relevance_score >= 0
    with pytest.raises(cohere.UnauthorizedError):
        cohere.Client("wrong", base_url=running.url).rerank(query="hat", documents=["red-hat"])
    with pytest.raises(cohere.UnprocessableEntityError):
        cohere.Client(KEY, base_url=running.url).rerank(query="[]", documents=["red-hat"])


def test_the_commands_of_the_guide_run(running):
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "service.md").read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"```bash\n(.*?)```", guide, re.DOTALL)).replace("\\\n", " ").splitlines()
    ids = iter([f"{color}-{kind}" for color in ("red", "black") for kind in ("shirt", "bag", "hat", "coat", "skirt")])
    answers = []
    for command in [line for line in blocks if line.startswith("curl ")]:
        command = re.sub(r"\bID\b", lambda _: next(ids), command)
        command = command.replace("http://localhost:8000", running.url).replace("Bearer KEY", f"Bearer {KEY}")
        if answers:
            command = command.replace("ANSWER", answers[0]["answer_id"])
        run = subprocess.run(f"{command} --fail-with-body", shell=True, capture_output=True, text=True, timeout=600)
        assert run.returncode == 0, f"{command}: {run.stdout}"
        answers.append(json.loads(run.stdout))
    assert [len(answers[0]["items"]), len(answers[1]["results"])] == [3, 2]
    assert [answers[2]["added"], answers[3]["title"], answers[4]["removed"]] == [1, "linen hat", 1]
    assert len(answers) == 6


def test_clients_that_send_nothing_more_keep_nobody_waiting(running):
    host, port = running.url.removeprefix("http://").split(":")
    head = f"POST /v1/complete HTTP/1.1\r\nHost: {host}\r\nContent-Length: 900\r\n\r\n{{"
    slow = [socket.create_connection((host, int(port))) for _ in range(40)]
    try:
        for number, each in enumerate(slow):
            each.sendall(head.encode()[: None if number % 2 else 40])
        with connect(running) as client:
            for _ in range(5):
                complete(client, ["red-hat"])  # which would never come after the first half of a request
    finally:
        for each in slow:
            each.close()


def test_a_killed_worker_is_replaced_and_the_others_go_on(running, log):
    workers = running.workers()
    assert len(workers) == 2
    answered, broken, done = [], [], threading.Event()

    def ask():
        while not done.is_set():
            try:
                with connect(running) as client:
                    answered.append(complete(client, ["red-hat"])["answer_id"])
            except httpx.TransportError as error:  # the connection to the worker is gone: the client knows at once
                broken.append(error)

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(ask) for _ in range(8)]
        try:
            wait_until(lambda: len(answered) >= 20)
            workers[0].kill()
            before = len(answered)
            wait_until(lambda: len(answered) >= before + 20)  # of the other one, or the successor
            wait_until(lambda: len(now := running.workers()) == 2 and workers[0] not in now)
        finally:
            done.set()
        for each in clients:
            each.result()
    assert len(broken) <= 8
    written = [record["answer_id"] for record in read_log(log) if "items" in record]
    assert set(answered) <= set(written) and len(written) == len(set(written))
    assert all(json.loads(line) for line in log.read_text().splitlines())
    with connect(running) as client:
        metrics = client.get("/metrics").text
        waiting = [line for line in metrics.splitlines() if line.startswith("bundle_mllm_waiting_questions ")]
        assert waiting == ["bundle_mllm_waiting_questions 0.0"]


def is_refused(url):
    try:
        httpx.get(f"{url}/healthz", timeout=600)
    except httpx.TransportError as error:
        return isinstance(error, httpx.ConnectError)
    return False


def test_what_was_accepted_is_answered_when_the_service_stops(folders, tmp_path):
    log = tmp_path / "answers.jsonl"
    options = ("--log", str(log), "--time-limit", "3600")
    with service(folders[1], *options) as running, ThreadPoolExecutor(12) as pool:
        with httpx.Client(base_url=running.url, timeout=600) as client, open(log) as held:
            fcntl.flock(held, fcntl.LOCK_EX)  # nothing is answered before it is noted
            answers = [pool.submit(complete, client, ["red-hat"]) for _ in range(12)]
            wait_until(lambda: "bundle_mllm_waiting_questions 12.0" in client.get("/metrics").text)
            running.process.terminate()
            wait_until(lambda: is_refused(running.url))
            assert not any(answer.done() for answer in answers)
            fcntl.flock(held, fcntl.LOCK_UN)
            status, text = running.stop()
            assert [len(answer.result()["items"]) for answer in answers] == [10] * 12
        assert status == 0 and text == "stopped; what was accepted is answered\n"
    logged = [json.loads(line) for line in running.lines]
    assert {line.get("status") for line in logged if line["message"] == "request"} == {200}
