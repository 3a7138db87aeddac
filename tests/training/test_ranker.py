"""The ranker that a run starts from, and how it scores training bundles that it has not seen."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from tiny_models import make_backbone, make_tokenizer
from tiny_training import tiny_run

from bundle_mllm.data import DatasetFolder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.evaluation.scoring import score_questions
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter
from bundle_mllm.modeling.scoring_bundle_mllm import pad_right
from bundle_mllm.training.ranker import build_ranker, longest_list, score_held_out
from bundle_mllm.training.run_data import RunData


def build(data, tmp_path, base_model="scratch", **changes):
    run = tiny_run(data.path, tmp_path / "out", base_model, **changes)
    run_data = RunData(run, data)
    return *build_ranker(run, run_data), run_data


def tensors(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def data(tiny_data):
    return DatasetFolder.open(tiny_data)


def test_the_seed_decides_the_first_weights_and_the_global_random_state_stays(data, tmp_path):
    before = torch.get_rng_state()
    first, again, other = (tensors(build(data, tmp_path, seed=seed)[0]) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_features_and_their_statistics_are_those_of_the_folder(data, tmp_path):
    model, processor, _ = build(data, tmp_path)
    features, present = data.features().load()
    catalog = model.model.catalog
    is_present = present["visual"].bool()
    assert torch.equal(catalog.features["visual"][is_present], features["visual"][is_present])
    assert torch.equal(catalog.present[:, 0], is_present) and not is_present.all()
    assert processor.modalities == {"visual": 4}


def test_a_pretrained_backbone_is_taken_from_its_folder(data, tmp_path):
    make_backbone().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    model, _, _ = build(data, tmp_path, str(tmp_path / "base"))
    expected = make_backbone().state_dict()["model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(tensors(model)["model.language_model.layers.0.self_attn.q_proj.weight"], expected)


def test_a_ranker_without_letters_has_the_backbone_and_the_spread_of_its_titles(data, tmp_path):
    make_backbone().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    before = torch.get_rng_state()
    model, processor, _ = build(data, tmp_path, str(tmp_path / "base"), scoring="options", max_title_tokens=1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(
        tensors(model)["model.language_model.embed_tokens.weight"],
        make_backbone().state_dict()["model.embed_tokens.weight"],
    )
    tokens, _ = processor.item_tokens(processor.item_ids, show_items=False)
    assert {len(each) for each in tokens} == {2}  # the first token and one of the title
    with torch.no_grad():
        states = torch.cat([model.item_states(**pad_right([each])) for each in tokens])
    titles = states[:, : len(model.matching.mean)]
    assert torch.allclose(model.matching.mean, titles.mean(dim=0), atol=2e-2)  # computed in bfloat16 where that pays


def test_without_features_stage_two_is_refused_with_the_way_out(copied_data, tmp_path):
    for file in (copied_data / "features").iterdir():
        file.unlink()
    bare = DatasetFolder.open(copied_data)
    with pytest.raises(BundleMLLMError, match=r"no item features.*stage_two\.num_questions=0"):
        build(bare, tmp_path)
    model, processor, _ = build(bare, tmp_path, stage_two={"num_questions": 0})
    assert model.config.modalities == {} and processor.modalities == {}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"stage_one": {"num_candidates": (2, 5)}, "stage_two": {"num_candidates": (2, 7)}}, 7),
        ({"stage_one": {"num_candidates": (2, 9)}, "stage_two": {"num_questions": 0}}, 9),
        ({"stage_one": {"num_candidates": (2, 2)}, "stage_two": {"num_candidates": (2, 2)}}, 3),
        ({"stage_one": {"num_questions": 0}, "stage_two": {"num_questions": 0}}, 26),
    ],
    ids=["longer stage", "skipped stage", "at least three", "untrained"],
)
def test_one_prompt_takes_as_many_options_as_the_ranker_was_trained_on(data, tmp_path, changes, expected):
    assert longest_list(tiny_run(data.path, tmp_path / "out", **changes)) == expected
    assert build(data, tmp_path, **changes)[1].max_options == expected


def test_held_out_questions_are_scored_with_the_features_of_their_fold(folds_data, tmp_path):
    """The rows of the catalog itself do not matter."""
    model, processor, run_data = build(folds_data, tmp_path)
    scores, questions, folds = (
        score_held_out(model, processor, run_data),
        run_data.held_out_questions,
        run_data.out_of_fold,
    )
    assert [len(row) for row in scores] == [len(question.candidates) for question in questions]
    rows = model.catalog_rows()
    for row, question in zip(scores, questions, strict=True):
        fold = folds.fold_of_bundle[question.bundle_id]
        features = rows["features"] | {"bundle_item": folds.features[fold].float()}
        model.set_catalog(features, rows["present"] | {"bundle_item": folds.present[fold]})
        [expected] = score_questions(BundleCompleter(processor, ranker=model), [question])["ranker"]
        np.testing.assert_allclose(row, expected.scores, atol=1e-4)


def test_a_ranker_that_reads_no_bundles_scores_with_its_own_features(data, tmp_path):
    model, processor, run_data = build(data, tmp_path)
    assert run_data.out_of_fold is None and run_data.held_out_questions
    expected = score_questions(BundleCompleter(processor, ranker=model), run_data.held_out_questions)["ranker"]
    scores = score_held_out(model, processor, run_data)
    assert [list(question.scores) for question in expected] == [list(row) for row in scores]


@pytest.mark.parametrize("fails", [False, True])
def test_scoring_held_out_questions_leaves_the_ranker_as_it_was(folds_data, tmp_path, monkeypatch, fails):
    model, processor, run_data = build(folds_data, tmp_path)
    model.config.items_hash = processor.items_hash
    before = tensors(model)
    if fails:

        def score(*_, **__):
            raise MemoryError

        monkeypatch.setattr(BundleCompleter, "score", score)
    with pytest.raises(MemoryError) if fails else nullcontext():
        score_held_out(model, processor, run_data)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.config.items_hash == processor.items_hash
