"""kill -9 of the LLM server while clients ask: every request is answered, by the retriever meanwhile, and says so."""

import subprocess
import sys
import threading
from pathlib import Path

import httpx
import llm_stub
import pytest
from service_process import free_port, service, wait_until
from tiny_models import make_completer

from bundle_mllm.interop.export import export_stock

pytestmark = pytest.mark.slow

QUESTION = {"partial": ["i0", "i1"], "candidates": ["i2", "i3", "i4"]}
NUM_CLIENTS = 6


def until(answers, since, matches):
    """Wait until an answer after the first `since` ones matches; return how many there are then."""
    wait_until(lambda: any(matches(answer) for answer in answers[since:]))
    return len(answers)


def test_every_request_is_answered_while_the_llm_server_is_killed_and_comes_back(tmp_path):
    completer = make_completer()
    llm_stub.sure_of_letters(completer.ranker, completer.processor, [QUESTION])
    completer.save_pretrained(tmp_path / "model")
    stock = export_stock(tmp_path / "model", tmp_path / "stock")
    port = str(free_port())

    def start():
        return subprocess.Popen([sys.executable, Path(llm_stub.__file__), str(stock), port])

    answers, stop, llm = [], threading.Event(), start()
    address = f"openai:http://127.0.0.1:{port}/v1?timeout=60&retries=1#exported"
    try:
        with service(tmp_path / "model", "--ranker", address, "--time-limit", "3600") as running:

            def client():
                with httpx.Client(base_url=running.url, timeout=600, trust_env=False) as session:
                    while not stop.is_set():
                        response = session.post("/v1/complete", json=QUESTION)
                        assert response.status_code == 200, response.text
                        answers.append(response.json())

            threads = [threading.Thread(target=client) for _ in range(NUM_CLIENTS)]
            for thread in threads:
                thread.start()
            number = until(answers, 0, lambda answer: answer["unranked"] is None)
            llm.kill()
            llm.wait()
            number = until(answers, number, lambda answer: "cannot be reached" in (answer["unranked"] or ""))
            llm = start()
            until(answers, number, lambda answer: answer["unranked"] is None)
            assert all(thread.is_alive() for thread in threads)  # none met an error
            stop.set()
            for thread in threads:
                thread.join()
    finally:
        stop.set()
        llm.kill()
        llm.wait()
    ranked = {tuple(item["item_id"] for item in each["items"]) for each in answers if each["unranked"] is None}
    assert len(ranked) == 1
