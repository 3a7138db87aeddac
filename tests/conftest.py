"""What all tests share: no network, one thread, and a tiny dataset folder."""

import os
import shutil
import tempfile
from pathlib import Path

# Code that comes with models, as this process and those that it starts keep it: others would change it meanwhile.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="modules-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch
from browsing import CHROMIUM

from bundle_mllm.data.features import write_modality
from bundle_mllm.data.tables import write_records

torch.set_num_threads(1)  # a pool costs tiny models more than it gives, and a forked child must not inherit one

COLORS = ("red", "green", "blue", "black")
KINDS = ("shirt", "skirt", "shoes", "bag", "hat", "scarf", "belt", "coat")


def pytest_unconfigure():
    """Delete the code that came with models."""
    shutil.rmtree(os.environ["HF_MODULES_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """A dataset folder of 32 items: bundles agree in color, which the title tells; features are one-hot noise."""
    folder = tmp_path_factory.mktemp("tiny")
    items = [(color, kind) for color in COLORS for kind in KINDS]
    write_records(
        folder / "items.jsonl",
        [{"item_id": f"{c}-{k}", "title": f"{c} {k}", "category": k} for c, k in items],
    )
    rng = np.random.default_rng(0)
    bundles = []
    for number in range(48):
        color = COLORS[number % 4]
        kinds = rng.choice(KINDS, size=4, replace=False)
        split = ("train", "train", "train", "validation", "test")[number % 5]
        bundles.append({"bundle_id": f"b{number}", "items": [f"{color}-{k}" for k in kinds], "split": split})
    write_records(folder / "bundles.jsonl", bundles)
    features = np.array([[c == color for c in COLORS] for color, _ in items], dtype=np.float32)
    features = features + 0.1 * rng.standard_normal(features.shape).astype(np.float32)
    present = np.ones(len(items), dtype=np.uint8)
    present[3] = 0
    write_modality(folder / "features", "visual", features, present, {"encoder": "made by the test"})
    return folder


@pytest.fixture(scope="module")
def browser():
    """A browser; the test is left out where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs bundle-mllm[browser]")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on the path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
