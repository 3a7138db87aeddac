"""A small shop with pictures, and untrained models of it in folders as `train` leaves them."""

import torch
from PIL import Image
from tiny_models import make_backbone, make_tokenizer

from bundle_mllm.completion.item_table import save_items
from bundle_mllm.data import DatasetFolder, write_records
from bundle_mllm.encoders import encode_folder
from bundle_mllm.interop.backbone import wrap_backbone
from bundle_mllm.modeling import BundleCompleter, BundleItemProcessor, BundleRetriever, BundleRetrieverConfig
from bundle_mllm.training.config import MEMBERSHIPS
from bundle_mllm.training.memberships import load_memberships
from bundle_mllm.training.out_of_fold import load_out_of_fold

COLORS = ("red", "green", "blue", "black")
KINDS = ("shirt", "skirt", "shoes", "bag", "hat", "coat")


def make_shop(folder):
    """Write a dataset folder of 24 items with pictures, prices and features; bundles agree in color."""
    (folder / "images").mkdir()
    items = []
    for number, (color, kind) in enumerate((color, kind) for color in COLORS for kind in KINDS):
        Image.new("RGB", (8, 8), color).save(folder / "images" / f"{number}.png")
        item = {"item_id": f"{color}-{kind}", "title": f"{color} {kind}", "category": kind}
        brand = ("Acme", "Bolt", "Cape", "Dawn", "Echo", "Fern", "Gale", "Hill", "Iris", "Jade", "Kite", "Lime")[
            number // 2
        ]
        more = {"price": 10 + number, "in_stock": number % 2 == 0, "brand": brand}
        items.append({**item, "image": f"images/{number}.png", **more})
    bundles = [
        {
            "bundle_id": f"b{number}",
            "items": [f"{COLORS[number % 4]}-{KINDS[(number + step) % 6]}" for step in range(3)],
            "split": "validation" if number % 6 == 5 else "train",
        }
        for number in range(30)
    ]
    write_records(folder / "items.jsonl", items)
    write_records(folder / "bundles.jsonl", bundles)
    options = {"visual": "descriptor", "textual": "tfidf", "attributes": "columns:brand"}
    encode_folder(folder, **options, relational="bundle_item:svd", allow_leakage=True)
    return DatasetFolder.open(folder)


def make_folder(data, folder, *, ranker, retriever=True):
    """Write a model folder with random weights over the catalog of a dataset folder."""
    (features, present), catalog = data.features().load(), data.catalog
    modalities = {name: matrix.shape[1] for name, matrix in features.items()}
    memberships = load_memberships(data, MEMBERSHIPS, list(modalities), load_out_of_fold(data, list(modalities)))
    models, processor = {}, BundleItemProcessor(catalog.item_ids, catalog.titles, modalities)
    if ranker:
        backbone = make_backbone(max_position_embeddings=2048)
        models["ranker"], processor = wrap_backbone(backbone, make_tokenizer(), catalog, modalities)
        models["ranker"].set_catalog(features, present)
    if retriever:
        sizes = {name: len(pairs.nodes) for name, pairs in memberships.items()}
        config = BundleRetrieverConfig(modalities=modalities, memberships=sizes, hidden_size=8)
        model, generator = BundleRetriever(config), torch.Generator().manual_seed(2)
        for parameter in model.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        model.set_catalog(features, present, memberships, fit_statistics=True)
        models["retriever"] = model.eval()
    completer = BundleCompleter(processor, **models)
    completer.save_pretrained(folder)
    save_items(folder, data, modalities, memberships if retriever else ())
    return folder
