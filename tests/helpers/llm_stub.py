"""An OpenAI-compatible server on loopback that answers with an exported model's own log-probabilities, or fails.

`python llm_stub.py FOLDER PORT` runs it in a process of its own.
"""

import json
import sys
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def sure_of_letters(model, processor, questions):
    """Make the letters the most likely tokens, as training does: servers send no more than 20 log-probabilities."""
    letters, head = processor.answer_token_ids(8), model.lm_head.weight
    states = []
    hook = model.lm_head.register_forward_pre_hook(lambda module, inputs: states.append(inputs[0].flatten(0, -2)[-1]))
    for question in questions:
        model.last_logits(**processor(question, return_tensors="pt"))
    hook.remove()
    mean = torch.stack(states).mean(dim=0)
    head[letters] += 8 * mean / mean.square().sum()


class LLMStub:
    """What a server is asked, and how it behaves.

    Attributes:
        model: The name that it serves the folder under.
        status: Of every answer; `failures` answers have status 503 first.
        together: Requests that must be there at once before any is answered; 2 keeps a single one waiting.
        change: Takes the answer, and returns what is sent instead: JSON, or bytes.
        num_logprobs: Most log-probabilities that it sends.
        requests: The bodies that it was sent, and `keys` the keys.
        most_at_once: How many requests were there at once.
    """

    def __init__(self, folder, model="exported"):
        self.tokenizer, self.stock = (
            AutoTokenizer.from_pretrained(folder),
            AutoModelForCausalLM.from_pretrained(folder),
        )
        self.model, self.lock, self.at_once = model, threading.Condition(), 0
        self.reset()

    def reset(self):
        """Behave well again, with nothing asked so far."""
        self.status, self.failures, self.change, self.num_logprobs = 200, 0, lambda answer: answer, 20
        with self.lock:
            self.together = 1
            self.lock.notify_all()
            assert self.lock.wait_for(lambda: self.at_once == 0, timeout=600)
            self.requests, self.keys, self.most_at_once = [], [], 0

    def answer(self, body):
        """Return status and answer, as vLLM does: the most likely tokens of the whole vocabulary."""
        with self.lock:
            self.failures -= 1
            if self.failures >= 0:
                return 503, {"error": "busy"}
            if body["model"] != self.model:
                return 404, {"error": "no such model"}
            ids = self.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_tensors="pt")
            with torch.inference_mode():
                logs = self.stock(**ids).logits[0, -1].log_softmax(dim=-1)
        best = logs.topk(min(body["top_logprobs"], self.num_logprobs))
        top = [
            {"token": self.tokenizer.decode([token]), "logprob": log, "bytes": None}
            for log, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        choice = {"message": {"content": top[0]["token"]}, "logprobs": {"content": [{**top[0], "top_logprobs": top}]}}
        return self.status, self.change({"choices": [choice]})

    @contextmanager
    def serving(self, port=0):
        """Serve for the block; yields the port."""
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stub.lock:
                    stub.requests.append(body)
                    stub.keys.append(self.headers["Authorization"])
                    stub.at_once += 1
                    stub.most_at_once = max(stub.most_at_once, stub.at_once)
                    stub.lock.notify_all()
                    stub.lock.wait_for(lambda: max(stub.most_at_once, 1) >= stub.together, timeout=600)
                status, answer = stub.answer(body) if self.path == "/v1/chat/completions" else (404, {})
                with stub.lock:
                    stub.at_once -= 1
                    stub.lock.notify_all()
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        connections = []

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def process_request(self, request, address):
                connections.append(request)
                super().process_request(request, address)

            def handle_error(self, *args):  # a client that gave up
                pass

        with Server(("127.0.0.1", port), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield server.server_address[1]
            finally:
                server.shutdown()
                thread.join()
                for connection in connections:  # those that are kept open, as a server that is killed drops them
                    with suppress(OSError):
                        connection.shutdown(SHUT_RDWR)


if __name__ == "__main__":
    with LLMStub(sys.argv[1]).serving(int(sys.argv[2])):
        threading.Event().wait()
