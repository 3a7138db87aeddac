"""A model folder as training leaves it, with metrics, and a dataset folder with questions; both tiny."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import ITEM_IDS, TITLES, make_model, make_processor, make_retriever

from bundle_mllm.data import DatasetFolder, make_questions, save_questions, write_records
from bundle_mllm.evaluation.evaluate import evaluate
from bundle_mllm.modeling import BundleCompleter
from bundle_mllm.report import build_report
from bundle_mllm.settings import as_dict
from bundle_mllm.training.config import default_run

QUESTIONS = [
    {"question_id": "q0", "bundle_id": "b0", "partial": ["i0", "i1"], "candidates": ["i2", "i3"], "answer_index": 1},
    {"question_id": "q1", "bundle_id": "b0", "partial": ["i5"], "candidates": ["i6", "i0", "i4"], "answer_index": 0},
    {"question_id": "q2", "bundle_id": "b1", "partial": ["i7"], "candidates": ["i1", "i2", "i3"], "answer_index": 2},
]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """Both models with metrics and a report, weights in several files, as a run on local folders leaves them."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    data = tmp_path_factory.mktemp("shop")
    processor = make_processor(max_length=512)
    model = make_model(separator_token_id=processor.separator_token_id)
    BundleCompleter(processor, model, make_retriever(groups={"textual": [[0, 1, 2], [5, 6]]})).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    write_records(data / "items.jsonl", [{"item_id": i, "title": t} for i, t in zip(ITEM_IDS, TITLES, strict=True)])
    write_records(data / "test_hard.jsonl", QUESTIONS)
    write_records(data / "bundles.jsonl", [{"bundle_id": "b9", "items": ["i2", "i3", "i6"], "split": "train"}])
    settings = as_dict(replace(default_run("meta-llama/Llama-2-7b-hf", data=data, output_dir=folder), seed=7))
    validated = {"step": 5, "validation_hit_rate@1": 0.5, "validation_num_questions": 8}
    worse = {**validated, "step": 9, "validation_hit_rate@1": 0.25, "validation_log_likelihood": -2.0}
    record = {
        "settings": settings,
        "inputs": {},
        "finished": True,
        "stage_one": [{**validated, "validation_log_likelihood": -1.0}, worse],
        "stage_two": [],
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "training").mkdir()
    (folder / "training" / "optimizer.pt").write_bytes(b"\x80\x02not for others")
    evaluate(folder, data, data / "test_hard.jsonl", folder / "metrics.json")
    build_report([folder], data, questions=[data / "test_hard.jsonl"], split="train", sizes=(2,))
    return folder


@pytest.fixture(scope="session")
def data_folder(tiny_data, tmp_path_factory) -> Path:
    """The tiny dataset folder with questions, a user log, a picture and what a careless user leaves in it."""
    folder = tmp_path_factory.mktemp("bundles") / "data"
    (folder / "features").mkdir(parents=True)
    for name in ("bundles.jsonl", "features/visual.safetensors"):
        (folder / name).write_bytes((tiny_data / name).read_bytes())
    manifest = json.loads((tiny_data / "features/manifest.json").read_text())
    manifest["visual"]["encoder"] = f"folder:{folder}"
    manifest["visual"]["weights"] = str(folder / "clip")
    (folder / "features/manifest.json").write_text(json.dumps(manifest))
    data = DatasetFolder.open(tiny_data)
    rows = [{"item_id": i.item_id, "title": i.title, "category": i.category, "price": 7} for i in data.catalog]
    write_records(folder / "items.csv", [{**rows[0], "image": "images/first.png"}, *rows[1:]])
    (folder / "images").mkdir()
    (folder / "images" / "first.png").write_bytes(b"a picture")
    (folder / "interactions.csv").write_text("user_id,item_id\nu1,red-shirt\n")
    for split, seed in (("validation", 1), ("test", 2)):
        questions = make_questions(data.bundles[split], data.catalog, data.bundles, num_candidates=4, seed=seed)
        save_questions(folder / "questions" / f"{split}-uniform.jsonl", questions)
    return folder
