"""Dataset folders of the tests of training."""

import json
import shutil

import numpy as np
import pytest
import torch

from bundle_mllm.data import DatasetFolder
from bundle_mllm.data.features import write_modality
from bundle_mllm.data.folds import OutOfFoldFeatures
from bundle_mllm.encoders import encode_folder

NUM_FOLDS = 3


@pytest.fixture
def copied_data(tiny_data, tmp_path):
    """A copy of the tiny data that a test may change."""
    return shutil.copytree(tiny_data, tmp_path / "data")


@pytest.fixture
def folds_data(copied_data):
    """The tiny data with bundle_item features: f + 1 everywhere without fold f, about 100 with all bundles."""
    data = DatasetFolder.open(copied_data)
    num_items = len(data.catalog)
    rng = np.random.default_rng(0)
    features = 100 + rng.standard_normal((num_items, 2)).astype(np.float32)
    present = np.ones(num_items, dtype=bool)
    write_modality(data.path / "features", "bundle_item", features, present, {"encoder": "test"})
    of_folds = torch.arange(1.0, NUM_FOLDS + 1)[:, None, None] + torch.zeros(NUM_FOLDS, num_items, 2)
    present_of_folds = torch.ones(NUM_FOLDS, num_items, dtype=torch.bool)
    present_of_folds[0, 5] = False
    fold_of_bundle = {bundle.bundle_id: number % NUM_FOLDS for number, bundle in enumerate(data.bundles.train)}
    OutOfFoldFeatures("bundle_item", fold_of_bundle, of_folds.half(), present_of_folds).save(data)
    return data


@pytest.fixture(scope="session")
def bare_circles(tmp_path_factory):
    """64 items without titles or features; four circles of users and bundles, which nothing but the groups shows."""
    folder = tmp_path_factory.mktemp("circles")
    rng = np.random.default_rng(0)
    items = [f"i{row}" for row in rng.permutation(64)]
    circles = [items[start : start + 16] for start in range(0, 64, 16)]
    splits = ("train", "train", "train", "validation", "test")
    bundles = [
        {
            "bundle_id": f"b{number}",
            "items": [str(item) for item in rng.choice(circles[number % 4], 4, replace=False)],
            "split": splits[number % 5],
        }
        for number in range(240)
    ]
    pairs = [(user, item) for user in range(120) for item in rng.choice(circles[user % 4], 4, replace=False)]
    (folder / "items.jsonl").write_text("".join(json.dumps({"item_id": f"i{row}"}) + "\n" for row in range(64)))
    (folder / "bundles.jsonl").write_text("".join(json.dumps(bundle) + "\n" for bundle in bundles))
    (folder / "interactions.csv").write_text("user_id,item_id\n" + "".join(f"u{u},{i}\n" for u, i in pairs))
    return folder


@pytest.fixture(scope="session")
def circles(bare_circles, tmp_path_factory):
    """The circles with features of users and bundles, those of bundles out of fold, too."""
    folder = shutil.copytree(bare_circles, tmp_path_factory.mktemp("encoded") / "circles")
    encode_folder(folder, relational=["user_item:svd", "bundle_item:svd"])
    return DatasetFolder.open(folder)


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """24 titled items of three categories, one of them in none; shirts go with shoes."""
    folder = tmp_path_factory.mktemp("shop")
    kinds = ("Shirt", "Shoes", "Hat")
    items = [{"item_id": f"i{n}", "title": f"red thing {n}", "category": kinds[n % 3]} for n in range(24)]
    items[23] = {"item_id": "i23", "title": "RED, red socks"}
    bundles = [
        {"bundle_id": f"b{n}", "items": [f"i{n % 21}", f"i{(n + 1) % 21}"], "split": "test" if n % 7 == 3 else "train"}
        for n in range(70)
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / "bundles.jsonl").write_text("".join(json.dumps(bundle) + "\n" for bundle in bundles))
    encode_folder(folder, relational=["bundle_item:svd"], textual="tfidf")
    return DatasetFolder.open(folder)
