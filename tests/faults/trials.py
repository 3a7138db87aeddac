"""Run commands with faults, and judge what they leave: absent, complete, or resumable to the same bytes.

All modules are imported once; each trial is a fork of this process.
"""

import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from cases import CASES, PREPARE, write_sources
from hub_server import ORGANIZATION
from system_calls import FILLS_DISK, Asked, ask_first

NOT_COMPARED = {"seconds", "num_ranked", "largest_difference", "total"}
"""Keys of JSON files that hold what was measured by a clock."""
LIMIT = 600.0
"""Seconds after which a command counts as hanging."""
FULL_DISK, NO_RIGHTS = errno.ENOSPC, errno.EACCES

Decide = Callable[[str, str], "int | None"]


@dataclass
class Run:
    """A command in a process of its own.

    Attributes:
        calls: Names of the calls that were made for files of the folder.
        status: The exit status; negative for a signal.
        output: What went to standard output.
        errors: What went to standard error.
        seconds: How long it took.
        requests: How many requests the Hub got.
    """

    calls: list[str] = field(default_factory=list)
    status: int = 0
    output: str = ""
    errors: str = ""
    seconds: float = 0.0
    requests: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether it ended well, by the fault's own signal, or in one line that says what is left."""
        last = self.errors.strip().splitlines()[-1:] or [""]
        if self.status == 130:
            return last[0].startswith("bundle-mllm: interrupted")
        if self.status == 2:
            number = self.errors.count("bundle-mllm: error: ")
            return number == 1 and last[0].startswith("bundle-mllm: error: ")
        return self.status in (0, -signal.SIGKILL)


class Workshop:
    """A folder with all that commands read, made anew for each trial; and the Hub of the tests."""

    def __init__(self, folder: Path, hub: str, seed: int, names: Iterable[str]):
        self.base, self.root, self.hub = folder / "base", folder / "work", hub
        self.temporary = folder / "temporary"
        self.after: dict[str, dict[str, str]] = {}
        self.undisturbed: dict[str, Run] = {}
        self.rng = random.Random(seed)
        self._names: dict[int, Path] = {}
        shutil.rmtree(folder, ignore_errors=True)
        self.root.mkdir(parents=True)
        self.temporary.mkdir()
        write_sources(self.root)
        for command in (*PREPARE, *(command for name in names for command in CASES[name].first)):
            run = self.run(command.split())
            assert run.status == 0, run.errors
        others = shutil.ignore_patterns("retriever", "training", "combination.json")
        shutil.copytree(self.root / "model", self.root / "ranker", ignore=others)
        shutil.rmtree(self.root / "synth" / "images", ignore_errors=True)  # many, and nobody reads them
        self.root.rename(self.base)
        self.reset()
        self.before = self.tree()

    def reset(self) -> None:
        """Bring folder and Hub to the state before a trial."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.base, self.root)
        shutil.rmtree(self.temporary)
        self.temporary.mkdir()
        self.control(forget=True)

    def start(self, argv: list[str], *, is_watched: bool = False) -> tuple[int, Asked | None, float]:
        """Start a command; return its process, its calls if they are to be watched, and when it started."""
        ours, theirs = socket.socketpair()
        name = self.temporary / f"{time.monotonic_ns()}"
        for end in (".out", ".err"):  # also of a command that is killed before it opens them
            name.with_suffix(end).touch()
        pid = os.fork()
        if not pid:
            _be_command(argv, self.root, self.temporary, name, theirs if is_watched else None)
        theirs.close()
        started = time.monotonic()
        asked = Asked(ours, self.root) if is_watched else None
        ours.close()
        self._names[pid] = name
        return pid, asked, started

    def finish(
        self, pid: int, asked: Asked | None, started: float, decide: Decide, kill_after: float | None = None
    ) -> Run:
        """Wait for a command, and decide about each of its calls."""
        run = Run()

        def note(name: str, path: str) -> int | None:
            run.calls.append(name)
            return decide(name, path)

        while True:
            if asked is None:
                time.sleep(0.002)
            elif asked.wait(0.01) and not asked.answer(note):
                asked.close()
                asked = None
            ended, code = os.waitpid(pid, os.WNOHANG)
            passed = time.monotonic() - started
            if ended:
                break
            if passed > (LIMIT if kill_after is None else kill_after):
                _kill(pid)
        if asked is not None:
            asked.close()
        run.seconds, run.status = passed, os.waitstatus_to_exitcode(code)
        name = self._names.pop(pid)
        run.output, run.errors = (name.with_suffix(end).read_text(errors="replace") for end in (".out", ".err"))
        if (modules := name.with_suffix(".modules")).exists():
            _import_too(modules.read_text().split())
        return run

    def run(self, argv: list[str], decide: Decide | None = None, kill_after: float | None = None) -> Run:
        """Run a command to its end, or to a fault."""
        started = self.start(argv, is_watched=decide is not None)
        return self.finish(*started, decide or (lambda name, path: 0), kill_after)

    def tree(self) -> dict[str, str]:
        """Return a digest of each file, and of each file of the repositories; hidden temporary files do not count."""
        files = [path for path in sorted(self.root.rglob("*")) if path.is_file() or path.is_symlink()]
        names = {path.relative_to(self.root).as_posix(): path for path in files}
        found = {name: _digest(path) for name, path in names.items() if not _is_temporary(name)}
        for kind, repo in (("models", "model"), ("datasets", "data")):
            answer = self._ask("GET", f"/api/{kind}/{ORGANIZATION}/{repo}/tree/main?recursive=true")
            entries = json.loads(answer) if answer else []
            found |= {
                f"hub:{kind}/{entry['path']}": entry["oid"]
                for entry in entries
                if entry["type"] == "file" and entry["path"] != ".gitattributes"
            }
        return found

    def control(self, **state: object) -> int:
        """Tell the Hub of the tests what to do; return how many requests it got."""
        return json.loads(self._ask("POST", "/_control", json.dumps(state).encode()))["requests"]

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"{self.hub}{path}", body, method=method)
        request.add_header("Authorization", "Bearer hf_valid")
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.read()
        except urllib.error.HTTPError:
            return b""

    def learn(self, name: str) -> Run:
        """Run a case undisturbed, twice, and keep what it leaves."""
        case, trees = CASES[name], []
        for _ in range(2):
            self.reset()
            run = self.run(case.argv, lambda name, path: 0)
            assert run.status == 0, f"{name}: {run.errors}"
            run.requests = self.control()
            trees.append(self.tree())
        differ = sorted(path for path in trees[0].keys() | trees[1].keys() if trees[0].get(path) != trees[1].get(path))
        assert not differ, f"{name}: two undisturbed runs differ in {differ}"
        self.after[name], self.undisturbed[name] = trees[0], run
        return run


@dataclass(frozen=True)
class Verdict:
    """What a trial showed.

    Attributes:
        state: "absent", "complete" or "resumable": what the fault left.
        problem: What was lost or unclear; empty if nothing was.
    """

    state: str
    problem: str = ""


def judge(shop: Workshop, name: str, runs: list[Run]) -> Verdict:
    """Look at what a fault left, repeat the command, and look again."""
    case, before, after = CASES[name], shop.before, shop.after[name]
    left = shop.tree()
    state = "absent" if left == before else "complete" if left == after else "resumable"
    finished = [path for path in left.keys() | before.keys() if not path.startswith(case.unfinished)]
    half = [path for path in finished if left.get(path) not in (None, before.get(path), after.get(path))]
    lost = [path for path in finished if path not in left and path in after]
    if half or lost:
        return Verdict(state, f"half written: {half[:3]}, lost: {lost[:3]}")
    if unclear := [run for run in runs if not run.is_clean]:
        return Verdict(state, f"unclear, status {unclear[0].status}: {unclear[0].errors[-1500:]}")
    if any(run.status == 0 and "bundle-mllm: warning: " in run.errors for run in runs):
        return Verdict("complete")  # but for what the warning names
    again = shop.run(case.argv)
    if again.status != 0 and not (state == "complete" and not case.reruns and again.is_clean):
        missing = sorted(after.keys() - left.keys())
        said = [(run.status, run.errors[-300:]) for run in runs]
        return Verdict(state, f"the same command fails afterwards: {again.errors[-500:]} {said}, lacks {missing[:5]}")
    if again.status == 0 and (behind := [path.name for path in shop.root.rglob(".*.tmp")]):
        return Verdict(state, f"temporary files that nothing deletes: {behind[:3]}")
    now = shop.tree()
    differ = sorted(path for path in after.keys() | now.keys() if after.get(path) != now.get(path))
    return Verdict(state, f"other bytes than undisturbed: {differ[:5]}" if differ else "")


def try_call(shop: Workshop, name: str, kind: str, number: int) -> Verdict:
    """Let a fault of some kind happen at the call of some number."""
    shop.reset()
    case, count, pid, deleted = CASES[name], 0, 0, []

    def decide(call: str, path: str) -> int | None:
        nonlocal count
        count += 1
        if kind == "killed" and count == number:
            _kill(pid)
            return None
        if kind == "Ctrl-C" and count == number:
            os.kill(pid, signal.SIGINT)
        if kind == "disk full" and count >= number and call in FILLS_DISK:
            return FULL_DISK
        if kind == "no rights" and count >= number and call not in ("write", "pwrite64", "writev"):
            return NO_RIGHTS
        if kind == "file deleted" and count == number:
            victims = [path for path in shop.before if not path.startswith("hub:") and (shop.root / path).is_file()]
            deleted.append(shop.rng.choice(sorted(victims)))
            (shop.root / deleted[0]).unlink()
        return 0

    pid, asked, started = shop.start(case.argv, is_watched=True)
    run = shop.finish(pid, asked, started, decide)
    if kind == "file deleted":
        verdict = _judge_deleted(shop, name, run)
        return Verdict(verdict.state, verdict.problem and f"{deleted}: {verdict.problem}")
    return judge(shop, name, [run])


def _judge_deleted(shop: Workshop, name: str, run: Run) -> Verdict:
    """As `judge`, once the file is there again; what was made without it, and said so, is right, too."""
    for path in shop.before:
        if not path.startswith("hub:") and not (shop.root / path).exists() and path in shop.after[name]:
            (shop.root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(shop.base / path, shop.root / path)
    said = (run.output, run.errors) != (shop.undisturbed[name].output, shop.undisturbed[name].errors)
    verdict = judge(shop, name, [run])
    if verdict.problem and run.status == 0 and said:
        return Verdict("complete")
    return verdict


def try_moment(shop: Workshop, name: str) -> Verdict:
    """Kill a command at a random moment; one that uploads, when the Hub gets some request, before it answers."""
    shop.reset()
    case, whole = CASES[name], shop.undisturbed[name]
    if not case.uploads:
        return judge(shop, name, [shop.run(case.argv, kill_after=shop.rng.uniform(0, whole.seconds))])
    started = shop.start(case.argv)
    shop.control(kill=[started[0], shop.rng.randint(1, whole.requests)])
    run = shop.finish(*started, lambda name, path: 0)
    shop.control()
    return judge(shop, name, [run])


def try_pair(shop: Workshop, name: str) -> Verdict:
    """Run a command twice at a time."""
    shop.reset()
    first = shop.start(CASES[name].argv)
    time.sleep(shop.rng.choice((0.0, shop.rng.uniform(0, shop.undisturbed[name].seconds / 2))))
    second = shop.start(CASES[name].argv)
    runs = [shop.finish(*started, lambda name, path: 0) for started in (first, second)]
    verdict = judge(shop, name, runs)
    if not verdict.problem and all(run.status for run in runs):
        return Verdict(verdict.state, f"both failed: {runs[0].errors[-500:]} {runs[1].errors[-500:]}")
    return verdict


def _import_too(names: Iterable[str]) -> None:
    """Import what a command has imported, so that the next one need not."""
    for name in names:
        if name.split(".")[0] not in ("__main__", "__mp_main__") and name not in sys.modules:
            with suppress(Exception):
                import_module(name)


def _kill(pid: int) -> None:
    """Kill a command and what it has started; at its very beginning it leads no group yet."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)


def _be_command(argv: list[str], root: Path, temporary: Path, name: Path, watched: socket.socket | None) -> None:
    """Become the command, and end."""
    status = 1
    try:
        os.setsid()
        os.chdir(root)
        os.environ["TMPDIR"] = str(temporary)
        for number, path in enumerate((os.devnull, f"{name}.out", f"{name}.err")):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
        sys.stdout, sys.stderr = (open(number, "w", 1, closefd=False) for number in (1, 2))  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from bundle_mllm.cli import main
        from bundle_mllm.hub import publish
        from bundle_mllm.hub.verify import Verification

        # A process that imports all anew takes longer than all else; it writes to no place but a temporary folder.
        publish.verify_repository = lambda folder: Verification(1, 0.0)
        if watched is not None:
            ask_first(watched)
        status = main(argv)
        Path(f"{name}.modules").write_text(" ".join(sys.modules))
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _is_temporary(name: str) -> bool:
    hidden = [part for part in name.split("/") if part.startswith(".")]
    return any(part.startswith(".tmp") or part.endswith((".tmp", ".old", ".lock")) for part in hidden)


def _digest(path: Path) -> str:
    if path.is_symlink():
        return os.readlink(path)
    content = path.read_bytes()
    if path.suffix == ".json":
        with suppress(ValueError):
            content = json.dumps(_compared(json.loads(content))).encode()
    if path.suffix == ".html":
        content = re.sub(rb"[\d.]+ (s|seconds)\b", b"", content)  # how long it took
    return hashlib.sha256(content).hexdigest()


def _compared(value: object) -> object:
    if isinstance(value, dict):
        return {name: _compared(entry) for name, entry in value.items() if name not in NOT_COMPARED}
    return [_compared(entry) for entry in value] if isinstance(value, list) else value
