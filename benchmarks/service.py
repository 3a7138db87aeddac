"""The service under load, against retrieval itself, against one question at a time, and under overload.

    python benchmarks/service.py --model OUT --ranker-model OUT2 [--soak-minutes 10]

The load comes from `wrk` (Debian package wrk): random bundles of three items, whole catalog, ten answers. OUT is a
retriever, OUT2 a folder with a ranker (the demo's), which is asked about ten candidates. Everything runs on this
machine, so the load takes a part of the same cores; times of the server are CPU times of its process.

Targets: at most 5 ms of server CPU a request beyond retrieval itself; p99 at most 10 times p50 at half the saturating
rate; with the ranker, batching at least doubles the rate of one at a time; no errors, and memory within 5 % for ten
minutes (--soak-minutes 10); at 5 times the saturating rate 429s, nothing accepted that takes longer than its limit,
and back to normal within 5 s.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil
import torch

from bundle_mllm.completion.complete import load_ruled_completer

NUM_BODIES, NUM_SHOWN, NUM_CANDIDATES, TOP_K = 2_000, 3, 10, 10
CONNECTIONS = 16
"""Those that send without a pause, for the saturating rate."""
PAUSE = 2.0
"""Mean seconds between an answer and the next request of a connection that pauses; servers close idle ones after 5."""
COUNTS = ("process_cpu_seconds_total", "bundle_mllm_batch_questions_sum", "bundle_mllm_batch_questions_count")
"""Of the service: CPU time, questions that were answered, and batches of them."""
TIME_LIMIT = 4.0
"""Seconds of the service's own limit (its default)."""
WRK = """
local bodies, number, pause = {}, 0, 0
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init(arguments)
  for line in io.lines(arguments[1]) do table.insert(bodies, line) end
  pause = tonumber(arguments[2])
  math.randomseed(os.time() + tonumber(tostring(bodies):sub(8)) % 1000)
  number = math.random(#bodies)
  statuses, slow = "", 0
  counts = {}
end
function delay() return math.floor(2 * math.random() * pause) end
function request()
  number = number % #bodies + 1
  return wrk.format("POST", nil, {["Content-Type"] = "application/json"}, bodies[number])
end
function response(status, headers, body)
  counts[status] = (counts[status] or 0) + 1
  statuses = ""
  for code, count in pairs(counts) do statuses = statuses .. code .. "=" .. count .. " " end
end
function done(summary, latency, requests)
  local all = ""
  for _, thread in ipairs(threads) do all = all .. thread:get("statuses") end
  io.write(string.format('\\nRESULT {"seconds": %f, "requests": %d, "p50": %f, "p99": %f, "max": %f, "mean": %f, ',
    summary.duration / 1e6, summary.requests, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency.max / 1e3, latency.mean / 1e3))
  io.write(string.format('"errors": %d, "statuses": "%s"}\\n',
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout, all))
end
"""


@dataclass(frozen=True)
class Load:
    """What a run of wrk measured; times in milliseconds."""

    rate: float
    p50: float
    p99: float
    longest: float
    mean: float
    statuses: dict[int, int]
    errors: int


class Service:
    """A service in a process of its own."""

    def __init__(self, url: str, process: psutil.Process):
        self.url, self.process = url, process
        self.client = httpx2.Client(base_url=url, timeout=60, trust_env=False)

    def metric(self, name: str) -> float:
        """Return a value of /metrics."""
        lines = self.client.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def offer(self, bodies: Path, rate: float, seconds: float, latency: float) -> Load:
        """Send so many requests a second, at random times, where each takes about `latency` seconds."""
        return self.load(bodies, max(1, round(rate * (PAUSE + latency))), seconds, PAUSE)

    def load(self, bodies: Path, connections: int, seconds: float, pause: float = 0.0) -> Load:
        """Send requests over some connections, each of which waits `pause` seconds on average before each."""
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            script.write(WRK)
            script.flush()
            size = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]  # of whole seconds
            command = ["wrk", *size, "--timeout", "60s", "-s", script.name]
            output = subprocess.run(
                [*command, f"{self.url}/v1/complete", "--", bodies, str(1e3 * pause)], capture_output=True, text=True
            )
        found = [line for line in output.stdout.splitlines() if line.startswith("RESULT ")]
        if not found:
            sys.exit(f"wrk failed: {output.stdout[-500:]} {output.stderr[-500:]}")
        values = json.loads(found[0].removeprefix("RESULT "))
        statuses: dict[int, int] = {}
        for pair in values["statuses"].split():
            code, count = pair.split("=")
            statuses[int(code)] = statuses.get(int(code), 0) + int(count)
        rate = values["requests"] / values["seconds"]
        return Load(rate, values["p50"], values["p99"], values["max"], values["mean"], statuses, values["errors"])


@contextmanager
def serving(model: Path, *options: str) -> Iterator[Service]:
    """Serve a model folder for the block."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "bundle_mllm.cli", "serve", "--model", str(model), "--port", "0", *options]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            url = None
            while url is None:
                time.sleep(0.2)
                log.seek(0)
                found = [json.loads(line).get("url") for line in log if line.startswith("{")]
                url = next((each for each in found if each), None)
                if server.poll() is not None:
                    log.seek(0)
                    sys.exit(f"the service ended: {log.read()[-2000:]}")
            service = Service(url, psutil.Process(server.pid))
            while service.client.get("/readyz").status_code != 200:
                time.sleep(0.2)
            yield service
        finally:
            server.terminate()
            server.wait()


def write_bodies(model: Path, path: Path, num_candidates: int = 0) -> list[dict]:
    """Write random questions about the items of a model folder, one a line."""
    lines = (model / "items.jsonl").read_text(encoding="utf-8").splitlines()
    item_ids, rng = [json.loads(line)["item_id"] for line in lines], random.Random(0)
    questions = []
    for _ in range(NUM_BODIES):
        drawn = rng.sample(item_ids, NUM_SHOWN + num_candidates)
        question = {"partial": drawn[:NUM_SHOWN]}
        questions.append(question | ({"candidates": drawn[NUM_SHOWN:]} if num_candidates else {}))
    path.write_text("".join(json.dumps({**each, "top_k": TOP_K}) + "\n" for each in questions), encoding="utf-8")
    return questions


def retrieval_cpu(model: Path, questions: list[dict], batch: int) -> float:
    """Return the CPU milliseconds of a question in this process, in batches of the size that the service had."""
    torch.set_num_threads(1)
    completer, times = load_ruled_completer(model), []
    for start in range(0, 12 * batch, batch):
        asked = [questions[i % len(questions)] for i in range(start, start + batch)]
        before = time.process_time()
        completer.complete(asked, top_k=TOP_K)
        times.append((time.process_time() - before) / batch * 1e3)
    return statistics.median(times)


def measure_load(service: Service, model: Path, bodies: Path, questions: list[dict], seconds: float) -> float:
    """Print what a request costs, and latencies at half the saturating rate; return the saturating rate."""
    service.load(bodies, CONNECTIONS, 5)  # warm
    before = [service.metric(name) for name in COUNTS]
    full = service.load(bodies, CONNECTIONS, seconds)
    cpu, answered, batches = (after - b for after, b in zip(map(service.metric, COUNTS), before, strict=True))
    size = answered / batches
    own, alone = cpu / answered * 1e3, retrieval_cpu(model, questions, round(size))
    print(f"saturated                   {full.rate:7.1f} requests/s, p50 {full.p50:.1f} ms, p99 {full.p99:.1f} ms")
    print(f"server CPU of a request     {own:7.2f} ms, in batches of {size:.1f}")
    print(f"retrieval itself            {alone:7.2f} ms of CPU")
    print(f"beyond retrieval            {own - alone:7.2f} ms (target 5)")
    half = service.offer(bodies, full.rate / 2, 2 * seconds, full.p50 / 4e3)
    print(f"half the rate               {half.rate:7.1f} requests/s, p50 {half.p50:.1f} ms, p99 {half.p99:.1f} ms")
    print(f"p99 / p50                   {half.p99 / half.p50:7.1f} (target 10); errors {half.errors}, {half.statuses}")
    return full.rate


def measure_overload(service: Service, bodies: Path, rate: float, seconds: float) -> None:
    """Offer five times the saturating rate, then wait until a single request is as fast as before."""
    body = json.loads(bodies.read_text(encoding="utf-8").splitlines()[0])

    def alone() -> float:
        start = time.monotonic()
        answered = service.client.post("/v1/complete", json=body).status_code == 200
        return time.monotonic() - start if answered else float("inf")

    normal = statistics.median(alone() for _ in range(20))
    over = service.offer(bodies, 5 * rate, 2 * seconds, TIME_LIMIT / 5)
    start = time.monotonic()
    while alone() > max(3 * normal, 0.05) and time.monotonic() - start < 60:
        time.sleep(0.05)
    back = time.monotonic() - start
    offered = over.rate / rate
    print(f"overload                    {offered:7.1f} times the saturating rate was answered, of 5 that were offered")
    print(f"statuses                    {over.statuses}; errors of connections {over.errors}")
    print(f"longest request             {over.longest / 1e3:7.2f} s (limit {TIME_LIMIT:g})")
    print(f"back to normal after        {back:7.2f} s (target 5)")


def measure_batching(model: Path, seconds: float, folder: Path) -> None:
    """Compare the rate with the ranker, in batches and one at a time, in turns; also by the server's own CPU time."""
    bodies = folder / "candidates.jsonl"
    write_bodies(model, bodies, NUM_CANDIDATES)
    with serving(model) as batched, serving(model, "--batch-size", "1", "--batch-window", "0") as single:
        ratios, of_cpu = [], []
        for service in (batched, single):
            service.load(bodies, CONNECTIONS, 5)
        for _ in range(3):
            rates, costs = [], []
            for service in (batched, single):
                before = [service.metric(name) for name in COUNTS]
                rates.append(service.load(bodies, CONNECTIONS, seconds / 2).rate)
                cpu, answered, _ = (after - b for after, b in zip(map(service.metric, COUNTS), before, strict=True))
                costs.append(cpu / answered * 1e3)
            ratios.append(rates[0] / rates[1])
            of_cpu.append(costs[1] / costs[0])
    print(f"with the ranker             {rates[0]:7.1f} requests/s in batches, {rates[1]:.1f} one at a time")
    print(
        f"ratio of the rates          {statistics.median(ratios):7.2f} "
        f"(target 2; {min(ratios):.2f} to {max(ratios):.2f})"
    )
    print(f"CPU of a request            {costs[0]:7.2f} ms in batches, {costs[1]:.2f} ms one at a time")
    print(f"ratio of CPU                {statistics.median(of_cpu):7.2f} ({min(of_cpu):.2f} to {max(of_cpu):.2f})")


def measure_soak(service: Service, bodies: Path, rate: float, minutes: float) -> None:
    """Load for minutes at half the rate, and watch the memory."""
    statuses: dict[int, int] = {}
    memory, errors = [], 0
    deadline = time.monotonic() + 60 * minutes
    while time.monotonic() < deadline:
        load = service.offer(bodies, rate / 2, 10, 0.1)
        memory.append(service.process.memory_info().rss / 2**20)
        errors += load.errors
        for code, count in load.statuses.items():
            statuses[code] = statuses.get(code, 0) + count
    settled = memory[min(3, len(memory) - 1) :]
    middle = statistics.median(settled)
    print(f"{minutes:g} minutes                  {statuses}; errors of connections {errors}")
    print(
        f"memory                      {middle:7.0f} MiB, {min(settled) / middle - 1:+.1%} "
        f"to {max(settled) / middle - 1:+.1%} (target 5 %)"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--ranker-model", type=Path)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--soak-minutes", type=float, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bodies = folder / "questions.jsonl"
        questions = write_bodies(options.model, bodies)
        with serving(options.model, "--log", str(folder / "answers.jsonl")) as service:
            rate = measure_load(service, options.model, bodies, questions, options.seconds)
            measure_overload(service, bodies, rate, options.seconds)
            if options.soak_minutes:
                measure_soak(service, bodies, rate, options.soak_minutes)
        if options.ranker_model:
            measure_batching(options.ranker_model, options.seconds, folder)


if __name__ == "__main__":
    main()
