"""Verification finds what would not load elsewhere, what is unsafe to load, and what answers differently."""

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.hub import verify
from bundle_mllm.hub.integrity import check_complete, check_safe
from bundle_mllm.hub.publish import TAKEN, publish
from bundle_mllm.hub.repository import matches
from bundle_mllm.hub.verify import sample_questions, verify_repository
from bundle_mllm.model_folder import load_completer, load_ranker, save_model

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(model_folder, tmp_path):
    """A repository folder that a test may change."""
    for path in model_folder.rglob("*"):
        if matches(name := path.relative_to(model_folder).as_posix(), TAKEN):
            (tmp_path / "model" / name).parent.mkdir(exist_ok=True, parents=True)
            shutil.copy(path, tmp_path / "model" / name)
    return tmp_path / "model"


def shards(folder):
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize(
    "name", ["config.json", "items.jsonl", "processor_config.json", "tokenizer.json", "items_bundle_mllm.py"]
)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(BundleMLLMError, match=f"has no {name}, so it would not load"):
        check_complete(folder)


def test_settings_that_are_not_utf_8_are_refused(folder):
    (folder / "generation_config.json").write_bytes(b'{"bos_token_id": "\xed\xa0\xbd"}')
    with pytest.raises(BundleMLLMError, match=r"generation_config.json is not UTF-8 text .*write or copy it again"):
        check_complete(folder)


def test_a_missing_shard_is_named(folder):
    shards(folder)[1].unlink()
    with pytest.raises(BundleMLLMError, match=r"-00002-of-.*which is missing"):
        check_complete(folder)


def test_a_folder_without_weights_is_an_error(folder):
    for path in shards(folder):
        path.unlink()
    with pytest.raises(BundleMLLMError, match=r"holds no \*\.safetensors"):
        check_complete(folder)


@pytest.mark.parametrize("keep", [-1, 100, 4, 0])
def test_weights_that_are_cut_short_are_an_error(folder, keep):
    os.truncate(shards(folder)[0], shards(folder)[0].stat().st_size - 1 if keep < 0 else keep)
    with pytest.raises(BundleMLLMError, match=r"weights are missing or foreign|no readable header"):
        check_complete(folder)
    with pytest.raises(BundleMLLMError, match="no readable Bundle-MLLM model"):
        load_ranker(folder)


def tamper(folder, name, change):
    path = next(path for path in shards(folder) if name in load_file(path))
    tensors = load_file(path)
    tensors[name] = change(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_weight_of_another_shape_is_an_error(folder):
    tamper(folder, "model.projector.linear_1.weight", lambda weight: weight[:-1].clone())
    with pytest.raises(BundleMLLMError, match=r"no readable Bundle-MLLM model.*linear_1\.weight"):
        verify_repository(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pytorch_model.bin", b"anything"),
        ("extra.model", b"\x80\x04K\x01."),
        ("extra.dat", b"PK\x03\x04 a zip, as torch.save writes"),
    ],
)
def test_a_pickle_is_refused(folder, name, content):
    check_safe(folder)
    (folder / name).write_bytes(content)
    with pytest.raises(BundleMLLMError, match="may be a pickle"):
        check_safe(folder)


def test_questions_come_from_the_catalog_and_the_seed(folder):
    completer = load_completer(folder)
    processor, modalities = completer.processor, completer.processor.modalities
    one, same, other = (sample_questions(completer, seed=seed) for seed in (0, 0, 1))
    assert one == same != other
    ids = [entry for q in one for entry in (*q["partial"], *q["candidates"]) if isinstance(entry, str)]
    assert set(ids) <= set(processor.item_ids)
    assert {name: len(v) for name, v in one[-1]["candidates"][-1]["features"].items()} == modalities


@pytest.mark.parametrize("change", [lambda rows: rows[::-1], lambda rows: [rows[0].replace("red", "tan"), *rows[1:]]])
def test_items_in_another_order_or_of_other_titles_are_an_error(folder, change):
    lines = (folder / "items.jsonl").read_text().splitlines()
    assert change(lines) != lines
    (folder / "items.jsonl").write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(BundleMLLMError, match=r"items\.jsonl does not hold .* restore the file"):
        verify_repository(folder)


def test_a_new_catalog_forgets_the_items_of_the_former_one_until_it_is_saved(folder, tmp_path):
    model, processor = load_ranker(folder)
    assert model.config.items_hash
    model.set_catalog(
        {name: torch.ones(processor.num_items, width) for name, width in model.config.modalities.items()}
    )
    assert model.config.items_hash is None
    save_model(model, processor, tmp_path / "saved")
    assert load_ranker(tmp_path / "saved")[0].config.items_hash == processor.items_hash


@pytest.mark.parametrize("name", ["modeling_bundle_mllm.py", "of_others_bundle_mllm.py"])
def test_code_that_is_not_the_packages_is_refused_and_never_runs(folder, tmp_path, name):
    ran = tmp_path / "ran"
    code = (folder / name).read_text() if (folder / name).exists() else ""
    (folder / name).write_text(f"open({str(ran)!r}, 'w').close()\n{code}")
    for refuse in (verify_repository, lambda folder: publish(folder, "acme/outfits", dry_run=True)):
        with pytest.raises(BundleMLLMError, match=rf"{name} is not the code of this version"):
            refuse(folder)
    assert not ran.exists() and sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("number", ["score", "ranker", "retriever"])
def test_scores_that_differ_without_the_package_are_an_error(folder, monkeypatch, number):
    def change(*args, score=verify._score_in_clean_process):
        found = score(*args)
        changed = found["answers"][0][0]
        (changed if number == "score" else changed["explanation"])[number] += 1e-3
        return found

    monkeypatch.setattr(verify, "_score_in_clean_process", change)
    with pytest.raises(BundleMLLMError, match="answers differently without this package"):
        verify_repository(folder)


def test_the_clean_process_knows_no_token_and_no_home(folder, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    run, environments = verify.subprocess.run, []
    monkeypatch.setattr(verify.subprocess, "run", lambda *a, **o: environments.append(o["env"]) or run(*a, **o))
    assert verify_repository(folder).num_questions
    assert "AWS_SECRET_ACCESS_KEY" not in environments[0] and environments[0]["HOME"] != os.environ.get("HOME")


@pytest.mark.parametrize("where", ["", "..", "../.."])
def test_what_a_repository_is_made_from_is_never_overwritten(model_folder, where):
    target = model_folder / where
    before = sorted(path.name for path in model_folder.iterdir())
    with pytest.raises(BundleMLLMError, match=r"would be written over"):
        publish(model_folder, "acme/outfits", dry_run=True, output_dir=target)
    assert sorted(path.name for path in model_folder.iterdir()) == before


def test_a_folder_that_is_no_repository_is_never_overwritten(model_folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(BundleMLLMError, match="is no repository folder"):
        publish(model_folder, "acme/outfits", dry_run=True, output_dir=tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "three years of work"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: os.truncate(shards(folder)[0], 1000), "weights are missing or foreign|no readable header"),
        (lambda folder: shards(folder)[0].unlink(), "which is missing"),
        (
            lambda folder: (folder / "adapter_config.json").write_text("{}") and (folder / "config.json").unlink(),
            "merge",
        ),
        (lambda folder: None, "There are no metrics"),
    ],
)
def test_nothing_is_written_for_a_folder_that_cannot_be_published(folder, spoil, message):
    spoil(folder)
    with pytest.raises(BundleMLLMError, match=message):
        publish(folder, "acme/outfits", dry_run=True)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_the_options_of_a_question_fit_into_one_prompt_of_the_model(folder):
    completer = load_completer(folder)
    for max_options in (3, 10):
        completer.processor.max_options = max_options
        sizes = {len(question["candidates"]) for question in sample_questions(completer)}
        assert sizes == {min(4, max_options)}
