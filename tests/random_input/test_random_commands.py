"""Every command with random options and files: it ends well, or says in one error what is wrong."""

import json
import math
import os
import re
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_commands import CHANGES, Shop, changed, options_of, run, shorten, usual_options
from random_values import INPUTS, MEMORY

from bundle_mllm.cli.commands import COMMANDS

METRICS = [f"model/metrics{part}.json" for part in ("", ".ranker", ".retriever")]

KEPT = [
    ("demo", {"output_dir": Path("data")}, None, None, ""),
    ("export", {}, "model/processor_config.json", ("number", 1, 3.0), "max_options of the processor .* '3.0'"),
    ("calibrate", {}, "model/processor_config.json", ("value", 1, "-1"), "answer_cue of the processor .* '-1'"),
    ("complete", {}, "model/tokenizer_config.json", ("number", 0, 0.0), "item_token_offset of the tokenizer .* '0.0'"),
    ("complete", {"rules": Path("alone")}, None, None, "alone cannot be read"),
    ("evaluate", {}, "model/tokenizer_config.json", ("number", 0, 0.0), "item_token_offset of the tokenizer .* '0.0'"),
    ("retriever", {}, "ranker/tokenizer_config.json", ("number", 0, 0.0), "item_token_offset .* '0.0'"),
    ("retriever", {}, "data/features/manifest.json", ("value", 179, "0"), "manifest.json does not map modalities"),
    ("app", {}, "model/encoders/bundle_item.json", ("value", 3, "-1"), "bundle_item.json does not .*spec is -1"),
    ("catalog", {}, "model/encoders/bundle_item.json", ("value", 3, "-1"), "does not describe .*spec is -1"),
    ("best-accuracy", {}, "synth/synthetic.json", ("number", 1, 1.0), "signals.'title'. must be .* int, not 1.0"),
    ("best-accuracy", {}, "synth/synthetic.json", ("number", 1, 0), "cannot have 0 for themes"),
    ("report", {"model": (Path("added.jsonl"),)}, None, None, "added.jsonl is no model folder"),
    ("publish", {}, "model/generation_config.json", ("value", 0, "\ud83d"), "generation_config.json is not UTF-8"),
]
"""What the first whole run found: command, changed options, changed file and how, and what is said now."""


@pytest.fixture(scope="module")
def shop():
    """The folder that commands run in."""
    before = Path.cwd()
    with ExitStack() as stack:
        where = stack.enter_context(tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None))
        made = Shop(Path(where))
        os.chdir(made.root)
        try:
            shorten(stack)
            yield made
        finally:
            os.chdir(before)


@pytest.fixture(scope="module")
def strategies(shop):
    """The options of each command, made once."""
    paths = [
        *sorted(path.name for path in shop.base.iterdir()),
        "data/bundles.jsonl",
        *METRICS,
        "new",
        "new.jsonl",
        "nowhere/x",
    ]
    return {name: options_of(name, paths) for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
@settings(max_examples=5 * INPUTS // 6 or 6)
@given(data=st.data())
def test_a_command_ends_well_or_says_what_is_wrong(name, data, shop, strategies, count):
    options = data.draw(strategies[name])
    files = shop.files_of(options)
    file = data.draw(st.sampled_from(files)) if files and data.draw(st.booleans()) else None
    accepted, _ = called(shop, name, options, file, data.draw(CHANGES) if file else None)
    count("accepted" if accepted else "refused")


@pytest.mark.parametrize(("name", "given", "file", "change", "message"), KEPT)
def test_what_once_failed_ends_well_or_says_what_is_wrong(name, given, file, change, message, shop):
    accepted, printed = called(shop, name, next(usual_options(name)) | given, file, change)
    assert re.search(message, printed) and accepted == (not message), printed


def called(shop, name, options, file=None, change=None):
    """Change a file, call a command and bring the shop back; return whether it ended well, and what it printed."""
    try:
        if file is not None:
            path = shop.root / file
            text = changed(path.read_text(encoding="utf-8"), change)
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
        accepted, printed = run(name, options)
        if accepted and name == "complete" and options["json"]:
            scores = [item["score"] for item in json.loads(printed)]
            assert all(map(math.isfinite, scores)) and sum(scores) < 1 + 1e-4
        return accepted, printed
    finally:
        shop.restore()
