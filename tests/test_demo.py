"""The demo runs, its file holds what it promises, and README shows what the recorded one prints."""

import functools
import json
import re
from pathlib import Path

import pytest
from tiny_training import TINY_RETRIEVER, TINY_STAGE

from bundle_mllm import demo
from bundle_mllm.cli import show
from bundle_mllm.model_folder import load_completer
from bundle_mllm.settings import with_overrides

ROOT = Path(__file__).parents[1]
RATES = ("random", "retriever", "stage_one", "stage_two", "both", "stage_two_shuffled", "both_shuffled")
KEYS = {"domain", "seed", *RATES, "hit_rate@1_se", "valid_ratio", "num_questions", "completion", "seconds"}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The demo itself over 72 items and 12 test bundles, in a few steps; returns its folder and what it returned."""
    folder = tmp_path_factory.mktemp("demo")
    small = {"signals": {"title": 2, "media": 2}, "num_train": 60, "num_validation": 8, "num_test": 12}
    full_run = demo.demo_run

    def short_run(data, output_dir, seed):
        stage = TINY_STAGE | {"num_candidates": (8, 10)}
        changes = {"validation_questions": 8, "retriever": TINY_RETRIEVER, "stage_one": stage, "stage_two": stage}
        return with_overrides(full_run(data, output_dir, seed), changes)

    with pytest.MonkeyPatch.context() as patch:
        settings = functools.partial(demo.SyntheticSettings, **small, num_users=30, items_per_user=8)
        patch.setattr(demo, "SyntheticSettings", settings)
        patch.setattr(demo, "demo_run", short_run)
        return folder, demo.run_demo(folder, seed=3)


@pytest.mark.slow
def test_the_demo_leaves_a_dataset_folder_a_model_folder_and_its_result(result):
    folder, returned = result
    assert {path.name for path in folder.iterdir()} == {"data", "model", "demo.json", "demo.html"}
    assert json.loads((folder / "demo.json").read_text()) == returned
    assert load_completer(folder / "model").parts == ("ranker", "retriever", "both")
    questions = (folder / "data" / "questions" / "test.jsonl").read_text().splitlines()
    assert len(questions) == returned["num_questions"] >= 12


@pytest.mark.slow
def test_the_result_has_a_rate_of_each_part_and_one_completed_bundle(result):
    _, returned = result
    assert returned.keys() == KEYS
    assert (returned["domain"], returned["seed"], returned["random"]) == ("fashion", 3, pytest.approx(0.1))
    assert all(0 <= returned[name] <= 1 for name in (*RATES, "valid_ratio"))
    completion = returned["completion"]
    assert len(completion["ranked"]) == 10
    assert completion["answer"] in {answer["item_id"] for answer in completion["ranked"]}
    assert sum(answer["score"] for answer in completion["ranked"]) == pytest.approx(1)
    assert all(item["title"] for item in completion["partial"])


@pytest.mark.slow
def test_the_report_shows_each_part_and_the_completed_bundle(result):
    folder, returned = result
    lines = show.demo(returned, {"output_dir": folder}).splitlines()
    for label, name in (
        ("random", "random"),
        ("retriever", "retriever"),
        ("ranker, stage one", "stage_one"),
        ("ranker, stage two", "stage_two"),
        ("both ", "both"),
        ("both, features permuted", "both_shuffled"),
    ):
        [line] = [line for line in lines if line.startswith(label)]
        assert line.endswith(f"{returned[name]:.3f}")
    best = returned["completion"]["ranked"][0]
    assert any(best["item_id"] in line and best["title"] in line for line in lines)


@pytest.mark.slow
def test_the_page_shows_the_completed_bundle_with_its_pictures(result):
    folder, returned = result
    page, completion = (folder / "demo.html").read_text(), returned["completion"]
    answer_is_shown = completion["answer"] in [answer["item_id"] for answer in completion["ranked"][:5]]
    assert page.count("the item that was left out") == answer_is_shown
    assert page.count("<img ") == 5 + len(completion["partial"])
    assert all(answer["item_id"] in page for answer in completion["ranked"][:5])
    assert f"{returned['both']:.1%} of {returned['num_questions']} such questions" in page
    assert show.demo(returned, {"output_dir": folder}).endswith(f"page: {folder / 'demo.html'}")


def test_the_readme_shows_what_is_printed_for_the_recorded_demo():
    """`docs/demo.json` is the file that `make demo` wrote; README must show what is printed for it, to the letter."""
    recorded = json.loads((ROOT / "docs" / "demo.json").read_text())
    assert recorded.keys() == KEYS
    shown = re.search(r"make demo\n```\n+```text\n(.*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    assert shown.group(1) == show.demo(recorded, {"output_dir": Path("out/demo")})
