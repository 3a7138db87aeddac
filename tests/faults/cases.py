"""The commands that write files: what each needs, and how it is called; the others, with the reason.

Everything happens in one folder, by relative paths, with tiny data.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hub_server import ORGANIZATION
from PIL import Image
from tiny_models import make_backbone, make_tokenizer

NOT_TRIED = {
    "check": "writes nothing",
    "compare": "writes nothing",
    "demo": "calls what synthetic, encode, questions and train do, which are tried",
    "app": "writes nothing; it ends when it is told to",
    "serve": "ends when it is told to; its log and its changes of items have tests of their own in tests/serving",
}
"""Commands that are not tried, and why."""


@dataclass(frozen=True)
class Case:
    """One way to call a command.

    Attributes:
        command: The arguments.
        unfinished: Where a command may leave what it has done so far, to continue from.
        uploads: Whether it writes to the Hub of the tests.
        reruns: Whether it may be given again once it is done; if not, that is refused, and nothing changes.
        first: Commands that make what it reads, beside what all cases have.
    """

    command: str
    unfinished: tuple[str, ...] = ()
    uploads: bool = False
    reruns: bool = True
    first: tuple[str, ...] = ()

    @property
    def argv(self) -> list[str]:
        return self.command.split()


_STAGES = " ".join(
    f"--{stage}.num-questions 16 --{stage}.batch-size 8 --{stage}.num-validations 2 --{stage}.warm-start-steps 2 "
    f"--{stage}.num-candidates 2 4"
    for stage in ("stage-one", "stage-two")
)
_VALIDATION = "--validation-questions 8 --validation-candidates 4 --combination-questions 8"
_RETRIEVER = "--retriever.steps 4 --retriever.num-questions 64 --retriever.batch-size 16"

PREPARE = (
    "import --format tabular shop --output-dir raw",
    "import --format tabular shop --output-dir data",
    "encode --data data",
    "questions --data data --split test --num-candidates 4 --output data/questions/test.jsonl",
    f"train --data data --output-dir model {_STAGES} {_VALIDATION} {_RETRIEVER}",
    "evaluate --model model --data data --questions data/questions/test.jsonl --output model/metrics.json",
)
"""Commands that make what all cases have."""

CASES = {
    "synthetic": Case("synthetic --output-dir new", reruns=False),
    "best-accuracy": Case(
        "best-accuracy --data synth --questions synth.jsonl --output best.json",
        first=(
            "synthetic --output-dir synth --signal title",
            "questions --data synth --split test --num-candidates 4 --output synth.jsonl",
        ),
    ),
    "import": Case("import --format tabular shop --output-dir new", reruns=False),
    "encode": Case("encode --data raw", ("raw/features/",)),
    "questions": Case("questions --data data --split test --num-candidates 4 --output new.jsonl"),
    "train": Case(
        f"train --data data --output-dir out {_STAGES} {_VALIDATION} {_RETRIEVER}", ("out/",)
    ),
    "train, retriever alone": Case(
        f"train --data data --output-dir out --base-model none {_VALIDATION} {_RETRIEVER}", ("out/",)
    ),
    "retriever": Case(f"retriever --model ranker --data data {_VALIDATION} {_RETRIEVER}"),
    "evaluate": Case(
        "evaluate --model model --data data --questions data/questions/test.jsonl --output new/metrics.json "
        "--baselines popularity item_knn"
    ),
    "benchmark": Case("benchmark --source data --output-dir new --baselines popularity --num-candidates 4", ("new/",)),
    "report": Case(
        "report --model model --data data --questions data/questions/test.jsonl --num-candidates 4 --sizes 2 "
        "--length-questions 4 --max-questions 8 --output-dir new"
    ),
    "complete": Case("complete --model model --every-item --output new.csv", ("new.csv.parts/",)),
    "catalog add": Case("catalog add --model model --items added.jsonl", reruns=False),
    "catalog update": Case("catalog update --model model --items changed.jsonl"),
    "catalog remove": Case("catalog remove --model model --items removed.jsonl", reruns=False),
    "publish": Case(
        f"publish --model model --repo {ORGANIZATION}/model --metrics model/metrics.json --output-dir new "
        "--share-user-log",
        uploads=True,
    ),
    "publish-dataset": Case(
        f"publish-dataset --data data --repo {ORGANIZATION}/data --output-dir new", uploads=True
    ),
    "convert": Case("convert --checkpoint official/checkpoint --data official/data --base-model official/base "
                    "--output-dir new", reruns=False),
    "export": Case("export --model model --output-dir new", reruns=False),
    "calibrate": Case("calibrate --model model --data data --questions data/questions/test.jsonl"),
    "forget": Case("forget --model model --data data --users u3 --bundles b0"),
    "feedback": Case("feedback --log answers.jsonl --output new.jsonl"),
}  # fmt: skip


def write_sources(folder: Path) -> None:
    """Write what the commands above begin with."""
    from official_folders import write_data, write_item_modules, write_lora

    shop = folder / "shop"
    (shop / "images").mkdir(parents=True)
    rng, colors, kinds = np.random.default_rng(0), ("red", "green", "blue", "black"), "shirt skirt shoes bag hat belt"
    items = [(color, kind) for color in colors for kind in kinds.split()]
    lines = ["item_id,title,category,price,image"]
    for number, (color, kind) in enumerate(items):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(shop / "images" / f"{number}.png")
        lines.append(f"{color}-{kind},{color} {kind},{kind},{number}.5,images/{number}.png")
    (shop / "items.csv").write_text("\n".join(lines) + "\n")
    bundles, log = ["bundle_id,items,split"], ["user_id,item_id"]
    for number in range(40):
        chosen = rng.choice(kinds.split(), size=3, replace=False)
        split = ("train", "train", "train", "validation", "test")[number % 5]
        bundles.append(f"b{number},{'|'.join(f'{colors[number % 4]}-{kind}' for kind in chosen)},{split}")
        log += [f"u{number},{'-'.join(items[row])}" for row in rng.choice(len(items), size=3, replace=False)]
    (shop / "bundles.csv").write_text("\n".join(bundles) + "\n")
    (shop / "interactions.csv").write_text("\n".join(log) + "\n")
    (folder / "added.jsonl").write_text(json.dumps({"item_id": "new", "title": "red scarf", "price": 3}) + "\n")
    (folder / "changed.jsonl").write_text(json.dumps({"item_id": "red-bag", "title": "blue bag"}) + "\n")
    (folder / "removed.jsonl").write_text(json.dumps({"item_id": "red-bag"}) + "\n")
    answer = {"answer_id": "a1", "partial": ["red-bag"], "items": ["red-hat", "red-belt"], "new": []}
    answers = [answer, {"answer_id": "a1", "bought": ["red-hat"]}]
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    write_data(folder / "official" / "data")
    backbone = make_backbone()
    backbone.save_pretrained(folder / "official" / "base")
    make_tokenizer().save_pretrained(folder / "official" / "base")
    write_item_modules(folder / "official" / "checkpoint", backbone.config.hidden_size)
    write_lora(folder / "official" / "checkpoint", backbone)
