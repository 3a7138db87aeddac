"""`transformers serve` runs an exported folder, and an OpenAI client gets the letters that the model answers."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from service_process import free_port

from bundle_mllm.data import DatasetFolder, make_questions
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.interop.export import export_stock
from bundle_mllm.model_folder import load_completer, save_model
from bundle_mllm.modeling import BundleCompleter
from bundle_mllm.served_ranker import request_body
from bundle_mllm.training.config import default_run
from bundle_mllm.training.ranker import build_ranker
from bundle_mllm.training.run_data import RunData

pytestmark = pytest.mark.slow

for package in ("fastapi", "uvicorn", "pydantic"):
    pytest.importorskip(package, reason="transformers serve needs it: pip install 'transformers[serving]'")
openai = pytest.importorskip("openai")

START_UP = 600  # seconds, on a busy machine; about 8 on an idle one


@contextmanager
def serving(model, log):
    """Run `transformers serve` on a loopback port for the block, and take everything it started down afterwards."""
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--host", "127.0.0.1"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    with open(log, "wb") as output:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu"],
            stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            wait_until_healthy(server, port, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def wait_until_healthy(server, port, log):
    deadline = time.monotonic() + START_UP
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        if server.poll() is not None or time.monotonic() > deadline:
            state = "is not ready in time" if server.poll() is None else f"ended with status {server.returncode}"
            pytest.fail(f"transformers serve {state}:\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.2)


def prompt_writer(folder):
    """The client of `docs/guides/llm_servers.md`: it reads two files of the folder and nothing else."""
    record = json.loads((folder / "bundle_mllm_export.json").read_text(encoding="utf-8"))
    with open(folder / "items.jsonl", encoding="utf-8") as lines:
        text = {item["item_id"]: item["text"] for item in map(json.loads, lines)}

    def write(partial, candidates):
        shown = [record["partial_item_template"].format(number=n, item=text[i]) for n, i in enumerate(partial, 1)]
        options = [
            record["option_template"].format(letter=letter, item=text[i])
            for letter, i in zip(record["letters"], candidates, strict=False)
        ]
        between = record["item_separator_text"]
        return record["prompt_template"].format(partial=between.join(shown), options=between.join(options))

    return record["letters"], write


def test_an_openai_client_gets_the_letters_of_the_model(tiny_data, tmp_path):
    data = DatasetFolder.open(tiny_data)
    run = default_run("scratch", data=tiny_data, output_dir=tmp_path / "run")
    model, processor = build_ranker(run, RunData(run, data))
    save_model(model, processor, tmp_path / "model")
    folder = export_stock(tmp_path / "model", tmp_path / "stock")
    bundles = data.bundles.test
    questions = make_questions(bundles, data.catalog, data.bundles, num_candidates=6, questions_per_bundle=1, seed=0)
    scored = score_questions(BundleCompleter(processor, ranker=model.eval()), questions)["ranker"]
    expected = ["ABCDEF"[max(range(6), key=one.scores.__getitem__)] for one in scored]
    assert len(questions) >= 8 and len(set(expected)) >= 3
    assert expected == ["ABCDEF"[one.unrestricted_choice] for one in scored]
    letters, write = prompt_writer(folder)
    only_letters = {str(letters[letter]["token_id"]): 100.0 for letter in "ABCDEF"}

    with serving(folder, tmp_path / "serve.log") as url:
        proxyless = openai.DefaultHttpxClient(trust_env=False)
        client = openai.OpenAI(base_url=url, api_key="none", timeout=60, max_retries=0, http_client=proxyless)
        settings = {"model": str(folder), "max_tokens": 1, "temperature": 0}

        def ask(question, **more):
            messages = [{"role": "user", "content": write(question.partial, question.candidates)}]
            return client.chat.completions.create(messages=messages, **settings, **more).choices[0].message.content

        assert [ask(question, logit_bias=only_letters).strip() for question in questions] == expected
        assert [ask(question).strip() for question in questions[:3]] == expected[:3]
        plain = client.completions.create(prompt=processor.render(questions[0]), **settings)
        assert plain.choices[0].text == letters[expected[0]]["text"]

        greedy = {**request_body(str(folder), processor.message(questions[1])), "temperature": 0}
        answer = client.chat.completions.create(**greedy).choices[0]
        assert answer.message.content == letters[expected[1]]["text"] and answer.logprobs is None
        served = load_completer(tmp_path / "model", ranker=f"openai:{url}?timeout=60#{folder}")
        with pytest.raises(ValueError, match="`transformers serve` drops them"):
            served.score(questions[:1])
