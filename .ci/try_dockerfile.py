"""Do what the Dockerfile says without a container engine: in a fresh environment, with a copy of what it copies.

    /usr/bin/python3 .ci/try_dockerfile.py --model OUT --build-arg TORCH_INDEX=URL

reads every instruction from the Dockerfile itself. Paths of the image become paths below a temporary folder, whose
virtual environment stands for the base image; it is made by the Python that runs this, which other users must be able
to start. The model takes the place of /models/current. CMD is started as the user that USER names, where this process
may do that, until HEALTHCHECK succeeds; then it answers a question and is stopped. Users are not created (RUN useradd
is left out), and the base image itself is not tried.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

CONTEXT = Path(__file__).resolve().parent.parent
MODEL, PORT, KEY = "/models/current", "8000", "a-key-of-this-trial"
START_SECONDS = 300


def instructions(text):
    """Return the instructions of a Dockerfile: name and argument."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [tuple(line.split(None, 1)) for line in joined]


def copied(source, allowed):
    """Return a path of the context; .dockerignore leaves out all that it does not name."""
    if source not in allowed:
        sys.exit(f"COPY {source}: .dockerignore leaves it out")
    return CONTEXT / source


def wait_for(check, server, environment):
    deadline = time.monotonic() + START_SECONDS
    while subprocess.run(check, env=environment, stderr=subprocess.DEVNULL).returncode != 0:
        if server.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"the service is not healthy: {server.poll()}")
        time.sleep(0.5)


def main():
    """Run the trial."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--build-arg", action="append", default=[])
    options = parser.parse_args()
    given = dict(each.split("=", 1) for each in options.build_arg)
    allowed = [line[1:] for line in (CONTEXT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        root, environment, user, check = Path(folder), dict(os.environ), None, None
        for name in ("PYTHONPATH", "VIRTUAL_ENV"):
            environment.pop(name, None)
        where, server = root, None
        for name, argument in instructions((CONTEXT / "Dockerfile").read_text()):
            print(f"{name} {argument}", flush=True)
            if name == "FROM":
                subprocess.run([sys.executable, "-m", "venv", root / "venv"], check=True)
                environment["PATH"] = f"{root / 'venv' / 'bin'}:{environment['PATH']}"
            elif name == "ENV":
                environment |= dict(pair.split("=", 1) for pair in shlex.split(argument))
            elif name == "ARG":
                environment |= {key: given.get(key, value) for key, value in [argument.split("=", 1)]}
            elif name == "WORKDIR":
                where = root / argument.lstrip("/")
                where.mkdir(parents=True, exist_ok=True)
            elif name == "COPY":
                *sources, target = argument.split()
                for source in sources:
                    path, at = copied(source, allowed), where / target
                    shutil.copytree(path, at) if path.is_dir() else shutil.copy2(path, at)
            elif name == "RUN" and not argument.startswith("useradd"):
                subprocess.run(argument, shell=True, cwd=where, env=environment, check=True)
            elif name == "USER":
                user = int(argument) if os.getuid() == 0 else None
            elif name == "HEALTHCHECK":
                check = [part.replace(PORT, port) for part in json.loads(argument.split("CMD", 1)[1])]
            elif name == "CMD":
                model = root / MODEL.lstrip("/")
                shutil.copytree(options.model, model)
                subprocess.run(["chown", "-R", str(user), model.parent], check=user is not None)
                command = [part.replace(MODEL, str(model)).replace(PORT, port) for part in json.loads(argument)]
                environment |= {"BUNDLE_MLLM_API_KEY": KEY, "HOME": "/nonexistent"}
                server = subprocess.Popen(command, cwd=where, env=environment, user=user)
        try:
            wait_for(check, server, environment)
            item = json.loads((options.model / "items.jsonl").read_text(encoding="utf-8").splitlines()[0])["item_id"]
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/complete",
                json.dumps({"partial": [item], "top_k": 3}).encode(),
                {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
            )
            answer = json.load(urllib.request.urlopen(request, timeout=60))
            print("answers:", [each["item_id"] for each in answer["items"]], "by user", user, flush=True)
        finally:
            server.send_signal(signal.SIGTERM)
            status = server.wait(60)
        print("stopped with status", status)
        sys.exit(status)


if __name__ == "__main__":
    main()
