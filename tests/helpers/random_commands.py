"""Commands as functions of random options and files, in one small shop that is brought back after each call.

A command is called as the command line calls it, with options of the types that it reads; in one process, with models
of some thousand weights, which are loaded once. What takes long and is tested elsewhere is left out, see `shorten`.
"""

import copy
import json
import os
import re
import shutil
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import is_dataclass, replace
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from cases import CASES, write_sources
from hypothesis import strategies as st
from random_values import TEXT, VALUES, is_ours, oddly, of_type
from tiny_shop import make_folder
from transformers import AutoConfig

from bundle_mllm.cli import _load, main
from bundle_mllm.cli.commands import COMMANDS
from bundle_mllm.cli.options import _fields, parse_options
from bundle_mllm.data import DatasetFolder
from bundle_mllm.data.files import new_folder
from bundle_mllm.model_folder import load_completer
from bundle_mllm.modeling import BundleItemProcessor, BundleMLLMForCausalLM, BundleMLLMProcessor, BundleRetriever
from bundle_mllm.settings import with_overrides
from bundle_mllm.synthetic.settings import SyntheticSettings
from bundle_mllm.synthetic.write import make_synthetic

OTHERS = {
    "check": ["check --data data"],
    "compare": ["compare --a model/metrics.json --b model/metrics.retriever.json"],
    "demo": ["demo --output-dir new"],
    "app": ["app --model model --data data"],
    "serve": ["serve --model model", "serve --model model --log new.jsonl"],
    "complete": [
        "complete --model model --bundle red-shirt,red-bag --json",
        "complete --model model --bundle red-shirt --candidates red-bag,blue-hat,blue-bag --explain --json",
        "complete --model model --input questions.jsonl --output new.jsonl",
    ],
    "encode": [
        "encode --data raw --visual descriptor",
        "encode --data raw --textual tfidf --attributes all",
        "encode --data raw --relational bundle_item:svd",
    ],
    "report": [
        "report --model alone --data data --questions few.jsonl --num-candidates 4 --sizes 2 --length-questions 1 "
        "--output-dir new"
    ],
    "retriever": [
        "retriever --model ranker --data data --validation-questions 2 --validation-candidates 2 "
        "--combination-questions 2 --calibration-questions 2 --retriever.steps 1 --retriever.num-questions 2 "
        "--retriever.batch-size 2"
    ],
    "train": ["train --data data --output-dir new --base-model official/base"],
    "synthetic": ["synthetic --output-dir new", "synthetic --output-dir new --signal title"],
}
"""Further ways to call a command than those of `tests/faults`, or ways that take less time."""
TEXTS = {
    "device": ["cpu"],
    "bundle": ["red-bag", "red-shirt,red-hat", '["red-bag"]', '[{"title": "red hat"}]'],
    "candidates": ["red-belt,blue-hat", "red-belt,blue-hat,green-bag"],
    "repo": ["shop/model"],
    "space": ["shop/space"],
    "base_model": ["official/base", "none"],
    "model": ["model", "ranker", "alone"],
    "checkpoint": ["official/checkpoint"],
    "users": ["u1", "u2"],
    "bundles": ["b0", "b1"],
    "baselines": ["popularity", "item_knn", "random"],
    "mask": ["titles", "visual"],
    "permute": ["visual", "textual"],
    "modalities": ["visual", "textual", "attributes"],
    "visual": ["descriptor"],
    "acoustic": ["descriptor"],
    "textual": ["tfidf"],
    "attributes": ["all", "columns:price"],
    "relational": ["bundle_item:svd", "user_item:svd"],
    "source": ["shop", "data"],
    "columns": ["item_id=item_id", "title=title", "price"],
    "tables": ["items=items.csv"],
    "delimiter": [","],
    "host": ["127.0.0.1"],
    "license": ["mit", "cc-by-4.0"],
    "datasets": ["shop/data"],
    "where": ["price > 3", "category == 'bag'", "price <= 9 and category != 'hat'"],
}
"""Texts that mean something to an option of this name."""
TEXT_FILES = (".json", ".jsonl", ".csv")
NEVER_RANDOM = {"dry_run", "engine", "workers", "open", "port", "space"}
"""Options that reach a network, the browser or other processes."""


def small(settings):
    """Return settings of an invented catalog that is made in a moment."""
    return replace(settings, num_train=20, num_validation=4, num_test=8, num_users=30, items_per_user=2)


class Shop:
    """A folder with all that commands read; `base` is what it is brought back to."""

    def __init__(self, folder):
        self.base, self.root = folder / "base", folder / "work"
        self.base.mkdir()
        before = Path.cwd()
        try:
            os.chdir(self.base)
            write_sources(Path())
            for command in (
                "import --format tabular shop --output-dir data",
                "encode --data data --visual descriptor --textual tfidf --relational bundle_item:svd",
                "questions --data data --split test --num-candidates 4 --output data/questions/test.jsonl",
            ):
                assert main(command.split()) == 0
            data = DatasetFolder.open("data")
            make_folder(data, Path("model"), ranker=True)
            make_folder(data, Path("ranker"), ranker=True, retriever=False)
            make_folder(data, Path("alone"), ranker=False)
            for command in (
                "calibrate --model model --data data --questions data/questions/test.jsonl",
                "evaluate --model model --data data --questions data/questions/test.jsonl --output model/metrics.json",
            ):
                assert main(command.split()) == 0
            make_synthetic(Path("synth"), small(SyntheticSettings(signals={"title": 2}, items_per_user=2)))
            argv = [
                "questions",
                "--data",
                "synth",
                "--split",
                "test",
                "--num-candidates",
                "4",
                "--output",
                "synth.jsonl",
            ]
            assert main(argv) == 0
            shutil.rmtree("synth/images")
            shutil.copytree("data", "raw", ignore=shutil.ignore_patterns("features", "questions"))
            few = Path("data/questions/test.jsonl").read_text().splitlines(keepends=True)[:2]
            Path("few.jsonl").write_text("".join(few))
            questions = [{"question_id": str(n), "partial": ["red-bag"]} for n in range(3)]
            Path("questions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions))
        finally:
            os.chdir(before)
        shutil.copytree(self.base, self.root)
        self.kept = self._stats()

    def _stats(self):
        found = {}
        for folder, _, names in os.walk(self.root):
            found[folder] = None
            for name in names:
                path = os.path.join(folder, name)
                stat = os.lstat(path)
                found[path] = (stat.st_mtime_ns, stat.st_size)
        return found

    def restore(self):
        """Bring back what a command has changed."""
        found = self._stats()
        for path in sorted(found.keys() - self.kept.keys(), key=len, reverse=True):
            shutil.rmtree(path, ignore_errors=True) if found[path] is None else Path(path).unlink(missing_ok=True)
        for path, stat in self.kept.items():
            if stat is None:
                Path(path).mkdir(exist_ok=True)
            elif found.get(path) != stat:
                shutil.copy2(self.base / Path(path).relative_to(self.root), path)

    def files_of(self, options):
        """Return the text files that options name, or that lie in folders that they name."""
        found = []
        for value in options.values():
            for each in value if isinstance(value, tuple) else (value,):
                path = Path(each) if isinstance(each, str | Path) and str(each) else None
                if path is not None and (self.base / path).exists():
                    inside = (self.base / path).rglob("*") if (self.base / path).is_dir() else [self.base / path]
                    found += [str(p.relative_to(self.base)) for p in inside if p.suffix in TEXT_FILES]
        return sorted(set(found))


DEMO = ("random", "retriever", "stage_one", "stage_two", "both", "stage_two_shuffled", "both_shuffled")
DEMO += ("hit_rate@1_se", "valid_ratio")


class Changed(NamedTuple):
    """A group of settings, and what is changed of it."""

    settings: Any
    changes: dict[str, Any]


def settings_of(name):
    return [_load(each) for each in COMMANDS[name].settings.split()]


def usual_options(name):
    """Return options with which a command ends well, by field: one or more ways."""
    ways = OTHERS.get(name) or [case.command for case in CASES.values() if case.command.split()[0] == name]
    for way in ways:
        argv = way.split()[1:]
        command = COMMANDS[name]
        defaults = command.recipe(argv)[0] if command.recipe else command.defaults
        yield parse_options(settings_of(name), argv, prog=name, defaults=defaults, positional=command.positional)


def options_of(name, paths):
    """A strategy of the options of a command: a usual way, with up to two options changed."""
    ways = list(usual_options(name))
    types = {field.name: hint for _, field, hint in _fields(settings_of(name)) if field.name not in NEVER_RANDOM}
    values = {each: of_type(hint, each, paths, TEXTS) for each, hint in types.items()}

    of_command = st.sampled_from(sorted(values))
    names = st.sampled_from([0, 0, 0, 0, 0, 1, 1, 2]).flatmap(
        lambda number: st.lists(of_command, min_size=number, max_size=number, unique=True)
    )

    @st.composite
    def drawn(draw):
        options = dict(draw(st.sampled_from(ways)))
        if "dry_run" in options:
            options["dry_run"] = True
        for each in draw(names):
            value = draw(values[each])
            options[each] = Changed(options[each], value) if is_dataclass(options[each]) else value
        return options

    return drawn()


TOKEN = re.compile(r'"[^"\n]*"|-?\d+(?:\.\d+)?|true|false|null|[a-z]+(?:-[a-z]+)?')


NUMBER = re.compile(r"(?<=[:,\[]\s)-?\d+(?:\.\d+)?")
VALUE = VALUES.map(json.dumps) | st.sampled_from(["-1", "0", "1e400", '"x"', "null", "[]", "{}"]) | TEXT
HARMLESS = st.one_of(
    st.tuples(st.just("number"), st.integers(0, 199), st.floats(0, 99) | st.integers(0, 9999)),
    st.tuples(st.just("blank"), st.integers(0, 999)),
)
HARMFUL = st.one_of(
    st.tuples(st.just("value"), st.integers(0, 199), VALUE),
    st.tuples(st.sampled_from(["drop", "twice"]), st.integers(0, 29)),
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("whole"), st.sampled_from(["", "[]", "{}", "null", "a,b\n1,2\n"]) | VALUE),
)
CHANGES = oddly(HARMLESS, HARMFUL, 3)
"""What may change in a text file: a number, blanks; a value, a line that is missing or there twice, its end, all."""


def changed(text, change):
    """Return the text of a file with one thing changed."""
    kind, where, *value = change
    if kind == "number" and (numbers := list(islice(NUMBER.finditer(text), 200))):
        number = numbers[where % len(numbers)]
        return text[: number.start()] + str(value[0]) + text[number.end() :]
    if kind == "blank":
        return text + " " * where
    lines = text.splitlines(keepends=True) or [""]
    tokens = list(islice(TOKEN.finditer(text), 200))
    if kind == "value" and tokens:
        token = tokens[where % len(tokens)]
        return text[: token.start()] + value[0] + text[token.end() :]
    if kind in ("drop", "twice"):
        number = where % len(lines)
        return "".join([*lines[:number], *([lines[number]] * 2 if kind == "twice" else []), *lines[number + 1 :]])
    if kind == "cut":
        return text[: int(where * len(text))]
    return where if kind == "whole" else text


def run(name, options):
    """Call a command; return whether it ended well, and what it printed. An error that is not ours is raised."""
    command = COMMANDS[name]
    printed = StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            given = {
                each: with_overrides(value.settings, value.changes) if isinstance(value, Changed) else value
                for each, value in options.items()
            }
            function = _load(command.run) if isinstance(command.run, str) else command.run
            text = command.show(function(**given), given)
        return True, text or ""
    except (ValueError, OSError) as error:
        if not is_ours(error):
            raise
        assert 0 < len(str(error)) < 20_000
        return False, str(error)


def remembered():
    """Patches that load each folder once, as long as its files are the same; each caller gets a copy."""
    kept = {}

    def patched(owner):
        original = owner.from_pretrained.__func__

        def load(cls, name, *args, **kwargs):
            path = Path(str(name))
            if not path.is_dir() or args:
                return original(cls, name, *args, **kwargs)
            stats = tuple(
                (str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(path.rglob("*")) if p.is_file()
            )
            key = cls, os.getcwd(), str(name), repr(sorted(kwargs.items())), stats
            if key not in kept:
                if len(kept) > 40:
                    kept.clear()
                kept[key] = original(cls, name, *args, **kwargs)
            return copy.deepcopy(kept[key])

        return patch.object(owner, "from_pretrained", classmethod(load))

    owners = (AutoConfig, BundleMLLMForCausalLM, BundleRetriever, BundleMLLMProcessor, BundleItemProcessor)
    return [patched(owner) for owner in owners]


def shorten(stack: ExitStack):
    """Leave out what takes long: training steps, drawing, verification by another process, serving."""
    from bundle_mllm.hub.verify import Verification

    picture = next(Path("data/images").iterdir()).read_bytes()
    for each in remembered():
        stack.enter_context(each)

    def skip(where, value=None):
        stack.enter_context(patch(f"bundle_mllm.{where}", value or (lambda *args, **kwargs: None)))

    skip("hub.publish.verify_repository", lambda folder: Verification(1, 0.0))
    for step in ("train_retriever", "train_stage", "combine", "finish", "remove_leftovers"):
        skip(f"training.run.{step}")
    skip("training.ranker.measure_num_ranked", lambda *args, **kwargs: 8)
    skip("serving.serve._run_here", lambda settings, key, listener, url: serve_app(settings, key))
    skip("serving.serve._run_workers")
    skip("serving.serve.logging.config.dictConfig")
    skip("app.page.launch")
    skip("app.page._check_free")
    skip("report.build.draw", lambda name, rows, chances, path: place(path, picture))
    skip("synthetic.write.make_synthetic", lambda folder, settings: make_synthetic(folder, small(settings)))
    skip("synthetic.write._draw_file", lambda catalog, row, kind: picture)
    skip("demo.make_synthetic", lambda folder, settings: copied("data", folder))
    skip("demo.encode_folder", lambda *args, **kwargs: {})
    skip("demo.train", lambda run: copied("model", run.output_dir))
    skip("demo._compare", lambda *args: dict.fromkeys(DEMO, 0.5) | {"num_questions": 16})
    skip("demo.pipeline", lambda task, model: load_completer(model).complete)


def copied(source, folder):
    with new_folder(folder) as temporary:  # may lie in the source
        shutil.copytree(source, temporary, dirs_exist_ok=True, ignore=lambda *_: [temporary.name])
    return Path(folder)


def place(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def serve_app(settings, key):
    from bundle_mllm.serving.serve import _make_app

    _make_app(settings, key)
