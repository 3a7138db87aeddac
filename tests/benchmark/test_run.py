"""A benchmark on made-up folders in published layouts: one table, fixed questions, nothing measured twice."""

import json
import random
import shutil

import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from official_folders import write_data
from tiny_models import make_completer_for

from bundle_mllm.benchmark import run as run_module
from bundle_mllm.benchmark import run_benchmark
from bundle_mllm.benchmark.run import RECORD, TABLE
from bundle_mllm.cli import main
from bundle_mllm.data import DatasetFolder, read_records, write_records
from bundle_mllm.data.features import write_modality
from bundle_mllm.data.files import sha256
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.results import compare_metrics

BASELINES = ("popularity", "item_knn", "ease")


def write_bundlerec(folder):
    folder.mkdir()
    rng = random.Random(0)
    rows = [f"{b},{i}" for b in range(60) for i in rng.sample(range(b % 3, 30, 3), 4)]
    (folder / "bundle_item.csv").write_text("\n".join(["bundle ID,item ID", *rows]) + "\n")
    titles = [f"{n},thing {n % 3}" for n in range(30)]
    (folder / "item_titles.csv").write_text("\n".join(["item ID,titles", *titles]) + "\n")
    return folder


def write_polyvore(folder):
    folder.mkdir()
    rng, items = random.Random(0), [f"i{n}" for n in range(24)]

    def choose(number):  # the items of test outfits are distinct
        return items[4 * (number - 46) :][:4] if number >= 46 else rng.sample(items, 4)

    for name, numbers in {"train": range(40), "valid": range(40, 46), "test": range(46, 52)}.items():
        outfits = [
            {"set_id": str(n), "items": [{"item_id": i, "index": k} for k, i in enumerate(choose(n), start=1)]}
            for n in numbers
        ]
        (folder / f"{name}.json").write_text(json.dumps(outfits))
    metadata = {item: {"title": f"title {item}", "semantic_category": "tops"} for item in items}
    (folder / "polyvore_item_metadata.json").write_text(json.dumps(metadata))
    blank = [{"question": ["46_1", "46_2"], "answers": ["46_3", "47_1", "47_2"], "blank_position": 3}]
    (folder / "fill_in_blank_test.json").write_text(json.dumps(blank))
    return folder


@pytest.fixture(scope="module")
def bundlerec(tmp_path_factory):
    """A benchmark without a model, and what it returned."""
    top = tmp_path_factory.mktemp("bundlerec")
    source = write_bundlerec(top / "electronic")
    return source, top / "out", run_benchmark(source, top / "out", baselines=BASELINES)


def test_the_table_has_every_method_with_paired_differences_to_the_best(bundlerec):
    _, output, result = bundlerec
    assert {row["questions"] for row in result["rows"]} == {"uniform", "hard", "catalog"}
    for row in result["rows"]:
        if "difference" not in row:
            continue
        files = [output / "metrics" / f"{row['questions']}.{name}.json" for name in (row["method"], row["reference"])]
        paired = compare_metrics(*files)[row["metric"]]
        assert (row["difference"], row["difference_se"]) == (paired["difference"], paired["se"])
    text = (output / TABLE).read_text()
    assert text == result["table"] == DisplayFormatter().format(result)[0]["text/markdown"] and str(output) not in text
    for name, made in result["questions"].items():
        assert made["sha256"] == sha256(output / "questions" / f"test_{name}.jsonl") and made["sha256"] in text
    assert "| popularity | " in text and "recall@20, catalog" in text and "(R)" in text and "Leakage check" in text
    assert json.loads((output / RECORD).read_text())["data"]["bundles"]["train"] == 48


def test_what_is_measured_is_kept_and_other_questions_are_refused(bundlerec):
    source, output, result = bundlerec
    before = {path: path.stat().st_mtime_ns for path in (output / "metrics").iterdir()}
    assert run_benchmark(source, output, baselines=BASELINES)["rows"] == result["rows"]
    assert {path: path.stat().st_mtime_ns for path in (output / "metrics").iterdir()} == before
    damaged = min(path for path in before if path.suffix == ".json")
    whole = damaged.read_bytes()
    damaged.write_bytes(b"\xff")
    with pytest.raises(BundleMLLMError, match=r"no metrics file that can be compared .* is not UTF-8 text"):
        run_benchmark(source, output, baselines=BASELINES)
    damaged.write_bytes(whole)
    with pytest.raises(BundleMLLMError, match="has other questions than these data and settings give"):
        run_benchmark(source, output, seed=1, baselines=BASELINES)
    assert sorted(path.name for path in (output / "questions").iterdir() if path.name.startswith("new")) == []


def test_figures_of_other_tables_are_not_kept(tmp_path, tiny_data):
    data = shutil.copytree(tiny_data, tmp_path / "data")
    run_benchmark(data, tmp_path / "out", baselines=["popularity"])
    items = read_records(data / "items.jsonl")
    write_records(data / "items.jsonl", [{**item, "title": f"new {item['title']}"} for item in items])
    other = r"figures of other data or of another version \({}.*give a new --output-dir"
    with pytest.raises(BundleMLLMError, match=other.format("items.jsonl")):
        run_benchmark(data, tmp_path / "out", baselines=["popularity"])
    write_records(data / "items.jsonl", items)
    run_benchmark(data, tmp_path / "out", baselines=["popularity"])
    (data / "features" / "visual.safetensors").unlink()
    with pytest.raises(BundleMLLMError, match=other.format("features/visual.safetensors")):
        run_benchmark(data, tmp_path / "out", baselines=["popularity"])


def test_figures_of_another_version_are_not_kept(tmp_path, tiny_data, monkeypatch):
    run_benchmark(tiny_data, tmp_path / "out", baselines=["popularity"])
    monkeypatch.setattr(run_module, "version", lambda _: "99")
    with pytest.raises(BundleMLLMError, match=r"another version \(bundle-mllm .*, now 99\)"):
        run_benchmark(tiny_data, tmp_path / "out", baselines=["popularity"])


def test_models_are_the_reference_and_their_parts_are_rows(bundlerec, tmp_path):
    source, _, _ = bundlerec
    run_benchmark(source, tmp_path / "out", baselines=["popularity"])
    folder = DatasetFolder.open(tmp_path / "out" / "data")
    values = np.random.default_rng(0).standard_normal((len(folder.catalog), 4)).astype(np.float32)
    write_modality(folder.path / "features", "visual", values, None, {"encoder": "the test"})
    make_completer_for(DatasetFolder.open(folder.path), True, True).save_pretrained(tmp_path / "model")
    result = run_benchmark(source, tmp_path / "out", model=[tmp_path / "model"], baselines=["popularity"])
    methods = {row["method"] for row in result["rows"]}
    assert methods == {"model: ranker", "model: retriever", "model: both", "popularity"}
    assert {row["reference"] for row in result["rows"] if "reference" in row} == {"model: both"}


def test_baselines_that_the_data_cannot_serve_are_named_without_paths(tmp_path):
    source = write_polyvore(tmp_path / "disjoint")
    result = run_benchmark(source, tmp_path / "out", baselines=["popularity", "boosted_ranker"])
    assert {row["questions"] for row in result["rows"]} == {"uniform", "hard", "published_fill_in_blank", "catalog"}
    assert set(result["left_out"]) == {"boosted_ranker, catalog"}
    assert str(tmp_path) not in result["table"]
    with pytest.raises(BundleMLLMError, match="'item_knn_users' cannot be measured"):
        run_benchmark(source, tmp_path / "out", baselines=["item_knn_users"])


def test_the_authors_layout_and_dataset_folders_are_read_too(tmp_path, tiny_data, capsys):
    for name in ("pog", "spotify", "steam"):
        source = write_data(tmp_path / name, name)
        result = run_benchmark(source, tmp_path / "a" / name, baselines=["popularity"], num_candidates=3)
        assert {row["questions"] for row in result["rows"]} == {"uniform", "hard", "published_cans3", "catalog"}
        assert result["table"].startswith(f"# {name}\n")
    command = ["benchmark", "--source", str(tiny_data), "--output-dir", str(tmp_path / "b")]
    assert main([*command, "--baselines", "popularity"]) == 0
    assert not (tmp_path / "b" / "data").exists()
    assert "| popularity | " in capsys.readouterr().out
    with pytest.raises(BundleMLLMError, match=r"no data set of a known layout: give a folder with one of count\.json"):
        run_benchmark(tmp_path / "a", tmp_path / "c")
