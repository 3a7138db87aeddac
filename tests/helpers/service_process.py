"""A service in processes of its own, as `bundle-mllm serve` starts it."""

import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import httpx
import psutil


def wait_until(holds, seconds=600):
    """Wait for a state, however fast the machine is."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it has not come to that"
        time.sleep(0.05)


def free_port():
    """Return a free port of this machine that no connection gets meanwhile: one below those that the system gives."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", random.randrange(10_000, 30_000)))
            return probe.getsockname()[1]


class ServiceProcess:
    """A running service: its address, its log lines so far, and its process."""

    def __init__(self, process):
        self.process, self.lines = process, []
        self.url = self._next("listening")["url"]
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        httpx.get(f"{self.url}/healthz", timeout=600).raise_for_status()  # waits until a worker is there

    def workers(self):
        """Return the processes below that of the command that listen, too."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):  # it ends just now, or has ended
                found += [child] if "spawn_main" in " ".join(child.cmdline()) else []
        return found

    def stop(self, seconds=600):
        """Ask it to stop; return its status and all that it printed."""
        self.process.terminate()
        status = self.process.wait(seconds)
        self._reader.join()
        return status, self.process.stdout.read()

    def _next(self, message):
        for line in self.process.stderr:
            self.lines.append(line)
            if line.startswith("{") and json.loads(line)["message"] == message:
                return json.loads(line)
        raise AssertionError(f"the service ended: {''.join(self.lines)}")

    def _read(self):
        self.lines += self.process.stderr


@contextmanager
def service(model, *options, **environment):
    """Start `bundle-mllm serve` on a free port; end its processes afterwards, however that is reached."""
    command = [sys.executable, "-m", "bundle_mllm.cli", "serve", "--model", str(model), "--port", "0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield ServiceProcess(process)
    finally:
        for each in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
            each.kill()
        process.kill()
        process.wait()
