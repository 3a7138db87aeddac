"""The demo's own parts; its training runs in `make demo`, and README shows what that prints."""

import json
import re
from pathlib import Path

import torch

from bundle_mllm.data import DatasetFolder
from bundle_mllm.demo import demo_run, render_report, shuffle_features
from bundle_mllm.training.backbone import build_model

ROOT = Path(__file__).parents[1]


def test_the_readme_shows_what_the_demo_prints():
    """`docs/demo.json` is the file that `make demo` wrote; README must show what is printed for it, to the letter."""
    result = json.loads((ROOT / "docs" / "demo.json").read_text())
    shown = re.search(r"make demo\n```\n+```text\n(.*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    assert shown.group(1) == render_report(result)


def test_the_recorded_demo_learned_what_it_claims():
    result = json.loads((ROOT / "docs" / "demo.json").read_text())
    assert result["stage_one"] >= result["random"] + 0.15
    assert result["stage_two"] >= result["stage_one"] + 0.15
    assert result["stage_two"] - result["stage_two_shuffled"] >= 0.5 * (result["stage_two"] - result["stage_one"])
    assert result["valid_ratio"] >= 0.99


def test_shuffling_gives_items_the_features_of_others_with_their_masks(tiny_data, tmp_path):
    data = DatasetFolder.open(tiny_data)
    model, _ = build_model(demo_run(tiny_data, tmp_path, seed=0), data)
    catalog = model.model.catalog
    rows, present = catalog.features["visual"].clone(), catalog.present.clone()
    mean = model.model.fusion.feature_mean["visual"].clone()
    shuffle_features(model, seed=1)
    moved = catalog.features["visual"]
    assert not torch.equal(moved, rows)
    assert torch.equal(moved.sort(dim=0).values, rows.sort(dim=0).values)
    assert catalog.present.sum() == present.sum() == 31
    assert moved[~catalog.present[:, 0]].abs().sum() == 0
    assert torch.equal(model.model.fusion.feature_mean["visual"], mean)
