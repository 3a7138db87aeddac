"""Kill commands, fill the disk under them, take away rights, delete files, interrupt them, run two at once.

    python tests/faults [--kills 30] [--others 5] [--commands train encode] [--kinds killed "disk full"] [--seed 0]

Prints a table of what the tries of each command and kind have left, and what was lost, and ends with status 1 if
anything was.
"""

import argparse
import json
import os
import pkgutil
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "helpers")]
from hub_server import TOKEN, HubServer  # noqa: E402

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}


KILLED = "killed"
AT_CALLS = (KILLED, "Ctrl-C", "disk full", "no rights", "file deleted")
AT_MOMENTS = "killed at any moment"
KINDS = (*AT_CALLS, AT_MOMENTS, "two at once")
STATES = ("absent", "resumable", "complete")
Table = dict[str, Counter[str]]


def start_hub() -> str:
    """Start the Hub of the tests in a process of its own, before this one has threads."""
    reader, writer = os.pipe()
    if not os.fork():
        with HubServer() as server:
            os.write(writer, server.url.encode())
            os.close(writer)
            while os.getppid() != 1:
                time.sleep(0.5)
        os._exit(0)
    os.close(writer)
    return os.read(reader, 100).decode()


def places(calls: list[str], tries: int, rng: random.Random) -> list[int]:
    """Return at which calls of a trace faults happen: as many renames as others, as far as there are that many."""
    everywhere = list(range(1, len(calls) + 1))
    rng.shuffle(everywhere)
    renames = [number for number in everywhere if calls[number - 1].startswith("rename")]
    others = [number for number in everywhere if number not in set(renames)]
    chosen = renames[: max(tries // 2, tries - len(others))]
    return sorted(chosen + others[: tries - len(chosen)])


def try_case(shop: Any, name: str, options: argparse.Namespace) -> tuple[Table, list[str]]:
    """Try the kinds of faults on a case; return what they left, by kind, and the problems."""
    from trials import try_call, try_moment, try_pair

    calls, table, problems = shop.learn(name).calls, {}, []
    killed_at = places(calls, options.kills - options.kills // 3, shop.rng)
    for kind in options.kinds:
        counts = table[kind] = Counter()
        if kind == AT_MOMENTS:
            trials = [partial(try_moment, shop, name)] * (options.kills - len(killed_at))
        elif kind in AT_CALLS:
            at = killed_at if kind == KILLED else places(calls, options.others, shop.rng)
            trials = [partial(try_call, shop, name, kind, number) for number in at]
        else:
            trials = [partial(try_pair, shop, name)] * options.others
        for trial in trials:
            verdict = trial()
            counts[verdict.state] += 1
            if verdict.problem:
                counts["lost"] += 1
                problems.append(f"{name}, {kind}, {trial.args[3:]}: {verdict.problem}")
    return table, problems


def main() -> int:
    """Run the trials that were asked for, or join the results of several runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kills", type=int, default=30, help="kills of each command, a third or more of them at any moment"
    )
    parser.add_argument("--others", type=int, default=5, help="tries of each other kind")
    parser.add_argument("--commands", nargs="*")
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON Lines: one for each command, as soon as it is done")
    parser.add_argument("--join", type=Path, nargs="*", help="show the table of such files, and try nothing")
    options = parser.parse_args()
    if options.join:
        results = [json.loads(line) for path in options.join for line in path.read_text().splitlines()]
        print(render({result["command"]: result["table"] for result in results}))
        return 0
    os.environ["HF_ENDPOINT"] = url = start_hub()
    with tempfile.TemporaryDirectory() as home:
        os.environ["HF_HOME"] = home
        return run(options, Path(home) / "faults", url)


def run(options: argparse.Namespace, folder: Path, url: str) -> int:
    """Import everything, once; then try one command after the other."""
    import torch

    torch.set_num_threads(1)
    import bundle_mllm
    from bundle_mllm.cli.terminal import silence_libraries

    silence_libraries()
    for module in pkgutil.walk_packages(bundle_mllm.__path__, "bundle_mllm."):
        if not module.name.endswith(("__main__", "clean_process")):  # scripts
            import_module(module.name)
    from cases import CASES
    from trials import Workshop

    names = options.commands or list(CASES)
    shop, table, all_problems = Workshop(folder, url, options.seed, names), {}, []
    for name in names:
        table[name], problems = try_case(shop, name, options)
        counts = {kind: dict(of_kind) for kind, of_kind in table[name].items()}
        for text in (f"{name}: {counts}", *problems):
            print(text, file=sys.stderr, flush=True)
        if options.output:
            with open(options.output, "a") as stream:
                stream.write(json.dumps({"command": name, "table": counts, "problems": problems}) + "\n")
        all_problems += problems
    print(render(table))
    return int(bool(all_problems))


def render(table: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """Return the table: by command and kind, how many tries left nothing, something to continue, all; and losses."""
    kinds = list(next(iter(table.values())))
    lines = ["| command | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    total: Counter[str] = Counter()
    for name, row in table.items():
        cells = []
        for kind in kinds:
            counts = row.get(kind, {})
            total.update(counts)
            states = " / ".join(str(counts.get(state, 0)) for state in STATES)
            cells.append(states + (f" **{counts['lost']} lost**" if counts.get("lost") else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    tries = sum(total[state] for state in STATES)
    return "\n".join([*lines, "", f"{' / '.join(STATES)}; {tries} tries, {total['lost']} losses"])


if __name__ == "__main__":
    sys.exit(main())
