"""The report in a model folder: on the card, in the repository, and never of other weights."""

import json
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub.card import read_measurements, render_model_card
from bundle_mllm.hub.report_files import read_report, write_report
from bundle_mllm.hub.settings import PublishSettings


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(model_folder, tmp_path / "model")


def render(folder):
    return str(
        render_model_card(PublishSettings(folder, "acme/outfits"), read_measurements(folder), read_report(folder))
    )


def test_the_card_shows_stages_lengths_and_ablations_with_the_figures_beside_it(folder, tmp_path):
    report, text = read_report(folder), render(folder)
    for row in report["sections"]["ablation"]["rows"]:
        cells = f"| {row['part']} | {row['variant'].replace('_', chr(92) + '_')} |"
        line = next(line for line in text.splitlines() if cells in line)
        assert f"{row['hit_rate@1']:.3f} ± {row['hit_rate@1_se']:.3f}" in line
    for row in report["sections"]["by_length"]["rows"]:
        assert f"| {row['negatives']} | 2 | {row['method']} | {row['hit_rate@1']:.3f} |" in text
    write_report(report, folder, tmp_path / "repository")
    linked = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert "report/figures/by_stage.png" in linked
    assert all((tmp_path / "repository" / path).read_bytes()[:4] == b"\x89PNG" for path in linked)


def test_tables_of_the_card_are_whole(folder):
    lines = render(folder).splitlines()
    for number, line in enumerate(lines):
        if re.fullmatch(r"\|(---\|)+", line):
            assert lines[number - 1].startswith("|") and lines[number + 1].startswith("|")
            assert lines[number - 1].count("|") == line.count("|")


def test_the_report_alone_is_enough_for_a_card(folder):
    measured = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").unlink()
    (measurement,) = read_measurements(folder)
    assert measurement.values["hit_rate@1"] == measured["hit_rate@1"]
    assert measurement.split == "test_hard"
    assert f"| both | {measured['hit_rate@1']:.3f}" in render(folder)


def test_text_of_unknown_form_in_a_report_is_left_out(folder, tmp_path):
    path = folder / "report" / "report.json"
    report = json.loads(path.read_text())
    report["data"]["name"] = "alice/secret-shop"
    report["note"] = "secret: hf_abc"
    report["left_out"]["cold_start"] = "see s3://secret"
    report["models"][0]["base_model"] = "/home/secret/llama"
    for row in report["sections"]["ablation"]["rows"]:
        row["num_questions"], row["note"] = "<b>secret</b>", "secret"
    path.write_text(json.dumps(report))
    write_report(read_report(folder), folder, tmp_path / "repository")
    for name in ("report.json", "report.html"):
        assert "secret" not in (tmp_path / "repository" / "report" / name).read_text()
    assert "secret" not in render(folder)


def test_examples_which_show_the_data_are_not_published(folder, tmp_path):
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["examples"] and "Examples, right and wrong" in (folder / "report" / "report.html").read_text()
    write_report(read_report(folder), folder, tmp_path / "repository")
    page = (tmp_path / "repository" / "report" / "report.html").read_text()
    assert "examples" not in (tmp_path / "repository" / "report" / "report.json").read_text()
    assert "Examples" not in page and "image/jpeg" not in page and "the model finds the item" in page


def test_a_folder_without_a_report_has_none(folder):
    shutil.rmtree(folder / "report")
    assert read_report(folder) is None
    assert "report/" not in render(folder)


def test_a_report_of_other_weights_is_refused(folder):
    file = next(folder.glob("*.safetensors"))
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(BundleMLLMError, match=r"about other weights.*run `bundle-mllm report"):
        read_report(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "figures" / "ablation.png").unlink(), "lacks the figure 'figures/ablation.png'"),
        (lambda folder: (folder / "report.json").write_text("{}"), "was not written by this version"),
        (lambda folder: (folder / "report.json").write_text('{"models": ['), "is not JSON"),
    ],
)
def test_a_damaged_report_is_refused(folder, damage, message):
    damage(folder / "report")
    with pytest.raises(BundleMLLMError, match=message):
        read_report(folder)
