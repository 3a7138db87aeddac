"""Every command and Python block of README and the documentation runs, or a comment in it says what it needs."""

import contextlib
import itertools
import random
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from official_folders import write_data
from PIL import Image
from tiny_models import make_backbone, make_tokenizer

import bundle_mllm
from bundle_mllm.cli import main
from bundle_mllm.data.tables import write_records
from bundle_mllm.training.run import train

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "guides").glob("*.md"))]
SMALL_RETRIEVER = (
    "--retriever.steps 4 --retriever.num-questions 128 --retriever.num-candidates 2 4 --combination-questions 16"
)
SMALL_STAGES = " ".join(
    f"--stage-{n}.num-questions 16 --stage-{n}.batch-size 8 --stage-{n}.num-validations 1 "
    f"--stage-{n}.num-candidates 2 4"
    for n in ("one", "two")
)
FEW_BASELINES = "popularity item_knn"
BACKBONES = ("Qwen/Qwen3-0.6B", "BACKBONE", "FOLDER", "NAME")
THEMES = {"beach": "sand sun wave surf", "office": "desk pen paper lamp", "garden": "seed spade rose hose"}


def commands_of(page):
    """The `bundle-mllm` commands of a page's blocks, each with its comment, in their order."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command, _, comment = re.sub(r"\s+#", "\0", line, count=1).partition("\0")
            if command.startswith("bundle-mllm "):
                yield " ".join(command.split()[1:]), comment.strip()


ALL = [(page, *pair) for page in PAGES for pair in commands_of(page)]


@pytest.mark.parametrize(("page", "command", "comment"), ALL, ids=[f"{page.stem}: {text}" for page, text, _ in ALL])
def test_its_options_exist(page, command, comment, capsys):
    name, *arguments = shlex.split(command)
    with pytest.raises(SystemExit):
        main([name, "--help-all"])
    known = set(re.findall(r"--[a-z][a-z0-9.-]*", capsys.readouterr().out))
    assert {each for each in arguments if each.startswith("--")} <= known


def with_names(texts):
    """Put items and the model of the world in the place of those that the pages name."""
    numbers = itertools.count()
    names = re.compile(r"\b(ID|SKU\d|invented-fashion-\d+)\b")
    return [names.sub(lambda _: f"office-{next(numbers) % 12}", t).replace("out/demo/model", "OUT") for t in texts]


def run(command, folder):
    """Run a command in a folder, small: with tiny backbones in place of pretrained ones, and few training steps."""
    name, *arguments = shlex.split(command)
    arguments = ["BACKBONE" if each in BACKBONES else each for each in arguments]
    text = " ".join(arguments)
    if name in ("train", "retriever"):
        ranker = name == "train" and "--base-model none" not in text and "--continue-from" not in text
        small = "" if "--no-retriever" in text or "--continue-from" in text else SMALL_RETRIEVER
        for option, values in re.findall(r"(--\S+)((?: [^-\s]\S*)+)", f"{small} {SMALL_STAGES}" if ranker else small):
            if option not in arguments:
                arguments += [option, *values.split()]
        arguments += ["--validation-candidates", "4"]
    if "--baselines" in arguments and arguments[arguments.index("--baselines") + 1] == "all":
        arguments[arguments.index("--baselines") + 1 :][:1] = FEW_BASELINES.split()
    arguments = with_names(arguments)
    if name == "benchmark":
        arguments += ["--num-candidates", "3"]  # of nine items
    if "--num-questions" in arguments:
        arguments[arguments.index("--num-questions") + 1] = "32"
    with contextlib.chdir(folder):
        return main([name, *arguments])


def item(theme, number):
    word = THEMES[theme].split()[number % 4]
    return {
        "item_id": f"{theme}-{number}",
        "title": f"{theme} {word} {number}",
        "category": word,
        "price": 5 + number,
        "brand": f"maker {number % 3}",
        "in_stock": True,
        "handle": f"{theme}-{number}",
        "image": f"{theme}-{number}.png",
    }


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with what the pages start from: exports of a shop, a dataset folder, models."""
    folder, rng = tmp_path_factory.mktemp("docs"), random.Random(0)
    items = [item(theme, number) for theme in THEMES for number in range(12)]
    bundles = []
    for _ in range(60):
        theme = rng.choice(list(THEMES))
        bundles.append([f"{theme}-{each}" for each in sorted(rng.sample(range(12), 4))])
    orders = [
        {"order_id": str(number), "sku": each, "quantity": 1, "created_at": f"2026-01-{1 + number % 28:02}"}
        for number, bundle in enumerate(bundles)
        for each in bundle
    ]
    shop, exports = folder / "shop", folder / "exports"
    names = {"item_id": "sku", "title": "product_name"}
    write_records(shop / "products.csv", [{names.get(k, k): v for k, v in each.items()} for each in items])
    write_records(shop / "items.csv", items)
    write_records(shop / "bundles.csv", [{"bundle_id": n, "items": "|".join(b)} for n, b in enumerate(bundles)])
    for each in items:
        pixels = np.random.default_rng(each["price"]).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(shop / each["image"])
    write_records(
        exports / "products.csv",
        [
            {"Handle": i["item_id"], "Title": i["title"], "Vendor": i["brand"], "Variant SKU": i["item_id"]}
            | {"Variant Price": i["price"], "Option1 Name": "Title", "Option1 Value": "Default Title"}
            | {"Variant Inventory Qty": 3, "Status": "active"}
            for i in items
        ],
    )
    write_records(exports / "orders.csv", orders)
    described = {each["item_id"]: each["title"] for each in items}
    write_records(folder / "retail.csv", [{**each, "description": described[each["sku"]]} for each in orders])
    write_records(folder / "new.jsonl", [{"item_id": "new", "title": "beach towel", "category": "sand", "price": 3}])
    write_records(folder / "prices.csv", [{"item_id": "beach-0", "price": 1}])
    write_records(folder / "gone.csv", [{"item_id": "beach-1"}])
    write_records(folder / "questions.csv", [{"question_id": 1, "partial": "beach-2|beach-3"}])
    (folder / "rules.yaml").write_text("where: price <= 50\nmax_per_category: 2\n")
    recipe = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/guides/training.md").read_text(), re.DOTALL)
    (folder / "recipe.yaml").write_text(recipe[1])
    Image.fromarray(pixels).save(folder / "shirt.jpg")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "BACKBONE")
    make_backbone().save_pretrained(folder / "BACKBONE")
    for name in ("DATA", "NEW"):
        shutil.copytree(shop, folder / name, ignore=shutil.ignore_patterns("products.csv", "bundles.*"))
        splits = ("train", "train", "train", "validation", "test")
        write_records(
            folder / name / "bundles.jsonl",
            [{"bundle_id": str(n), "items": b, "split": splits[n % 5]} for n, b in enumerate(bundles)],
        )
        assert main(["encode", "--data", str(folder / name)]) == 0
    assert run("train --data DATA --base-model scratch --output-dir OUT", folder) == 0
    for command in (
        "questions --data DATA --split test --num-candidates 5 --output q.jsonl",
        "evaluate --model OUT --data DATA --questions q.jsonl --output metrics.json --baselines popularity",
    ):
        assert run(command, folder) == 0
    for copy in ("OTHER", "LARGER", "RUNS/2026-01-01"):
        shutil.copytree(folder / "OUT", folder / copy)
    (folder / "RUNS" / "current").symlink_to("2026-01-01")
    write_data(folder / "pog")
    return folder


@pytest.mark.docs
@pytest.mark.parametrize("page", [each for each in PAGES if any(commands_of(each))], ids=lambda page: page.stem)
def test_the_commands_of_a_page_run_in_their_order(page, world, tmp_path, capsys):
    folder = tmp_path / "work"
    shutil.copytree(world, folder, symlinks=True)
    for command, comment in commands_of(page):
        if comment.startswith("needs") or command.startswith(("serve ", "app ")):  # which run until they are stopped
            continue
        if (output := re.search(r"--output-dir (DATA|OUT)\b", command)) and not command.startswith("evaluate"):
            shutil.rmtree(folder / output[1], ignore_errors=True)  # pages show several ways to write one folder
        if "MERGED" in command and not (folder / "MERGED").exists():
            shutil.copytree(folder / "INIT", folder / "MERGED")  # what `trl sft` and merge_adapter.py would write
        if "--continue-from OUT --data NEW" in command:  # as each page says, in a command or beside it
            assert run("encode --data NEW --like OUT", folder) == 0
        status = run(command, folder)
        assert status == 0, f"{command}\n{capsys.readouterr().err.splitlines()[-1]}"
        if command.startswith("import") and page.stem == "own_data":  # of many formats, some with few bundles
            shutil.rmtree(folder / "DATA")
            shutil.copytree(world / "DATA", folder / "DATA")


def python_of(page):
    """The Python blocks of a page, in their order, but those that need something."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [block for block in blocks if "# needs" not in block]


def small_train(config=None, **fields):
    """Train with few steps, whatever the page asks for."""
    stage = {"num_questions": 16, "batch_size": 8, "num_validations": 1, "num_candidates": (2, 4)}
    fields = fields or {"base_model": config.base_model, "data": config.data, "output_dir": config.output_dir}
    return train(
        **fields | {"stage_one": stage, "stage_two": fields.get("stage_two", {}) | stage},
        retriever={"steps": 4, "num_questions": 128, "num_candidates": (2, 4)},
        combination_questions=16,
        validation_candidates=4,
    )


@pytest.mark.docs
@pytest.mark.parametrize("page", [each for each in PAGES if python_of(each)], ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page, world, tmp_path, monkeypatch):
    folder = tmp_path / "work"
    shutil.copytree(world, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(bundle_mllm, "train", small_train, raising=False)
    names = {"__name__": "__main__"}
    for block in with_names(python_of(page)):
        if file := re.match(r"# (\w+\.py)\n", block):
            Path(file[1]).write_text(block, encoding="utf-8")
        if 'output_dir="OUT"' in block:
            shutil.rmtree("OUT")
        exec(compile(block, page.name, "exec"), names)
