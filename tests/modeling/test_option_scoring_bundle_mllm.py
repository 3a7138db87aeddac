"""The ranker without letters: what a score depends on, lists of any length, and a folder that loads."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import (
    ITEM_IDS,
    MODALITIES,
    make_features,
    make_model,
    make_processor,
    make_retriever,
)
from torch.nn import functional
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForCausalLM, pipeline

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.interop.export import export_stock
from bundle_mllm.model_folder import load_completer
from bundle_mllm.modeling import BundleCompleter, BundleMLLMForOptionScoring
from bundle_mllm.modeling.titles_bundle_mllm import TitleStates

QUESTION = {"partial": ["i0", "i2"], "candidates": ["i1", "i3", "i4", "i7"]}


@pytest.fixture
def processor():
    return make_processor()


@pytest.fixture
def model(processor):
    ranker = make_model(separator_token_id=processor.separator_token_id)
    model = BundleMLLMForOptionScoring.from_ranker(ranker, matching_rank=4)
    generator = torch.Generator().manual_seed(3)
    for matching in (model.matching, model.item_matching):
        for parameter in (matching.query.up.weight, matching.key.up.weight):
            parameter.data = torch.randn(parameter.shape, generator=generator)
    model.matching.mean += 0.1
    model.matching.whitening += 0.05 * torch.randn(model.matching.whitening.shape, generator=generator)
    return model


@pytest.fixture
def completer(model, processor):
    return BundleCompleter(processor, ranker=model)


def scores(completer, question, **options):
    return completer.score([question], **options)[0].scores["ranker"]


def test_the_score_is_the_formula_of_the_documentation(model, processor, completer):
    def title(item_id):
        tokens, _ = processor.item_tokens([item_id], show_items=False)
        hidden = model.model(input_ids=torch.tensor(tokens)).last_hidden_state[0].mean(dim=0)
        return (hidden - model.matching.mean) @ model.matching.whitening

    def item(item_id):
        return model.model.get_item_embeddings(torch.tensor([ITEM_IDS.index(item_id)]))[0]

    def compared(matching, vector):
        queries = [matching.query(vector(item_id)) for item_id in QUESTION["partial"]]
        bundle = sum(functional.normalize(query, dim=0) for query in queries)
        keys = [matching.key(vector(item_id)) for item_id in QUESTION["candidates"]]
        cosines = torch.stack([functional.cosine_similarity(bundle, key, dim=0) for key in keys])
        return matching.log_scale.exp() * cosines

    with torch.no_grad():
        of_titles, of_items = compared(model.matching, title), compared(model.item_matching, item)
    assert_close(scores(completer, QUESTION), (of_titles + of_items).log_softmax(0).double(), atol=1e-5, rtol=1e-4)
    completer.processor.show_items = False
    assert_close(scores(completer, QUESTION), of_titles.log_softmax(0).double(), atol=1e-5, rtol=1e-4)
    assert of_items.std() > 0.1


def test_an_item_without_a_title_is_compared_by_its_item_token(completer):
    new = {"title": "", "features": {name: matrix[3].tolist() for name, matrix in make_features().items()}}
    assert scores(completer, {**QUESTION, "candidates": ["i1", new, "i4"]}).isfinite().all()


def test_states_are_whitened_in_part_and_a_direction_without_variance_does_no_harm(model):
    generator = torch.Generator().manual_seed(0)
    states = 5 + torch.randn(500, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    states[:, 3] = 7.0
    model.matching.fit_statistics(states)

    def spread(x):  # of the variances of the principal directions
        variances = torch.linalg.eigvalsh(torch.cov(x.T))[1:]
        return float(variances.log().std())

    standard = (states - states.mean(dim=0)) / states.std(dim=0).clamp(min=1e-6)
    whitened = (states - model.matching.mean) @ model.matching.whitening
    assert whitened.isfinite().all() and whitened.mean(dim=0).abs().max() < 1e-3
    assert spread(whitened) == pytest.approx(0.75 * spread(standard), rel=0.02)


def test_the_order_of_the_candidates_and_of_the_bundle_has_no_effect(completer):
    turned = {"partial": QUESTION["partial"][::-1], "candidates": QUESTION["candidates"][::-1]}
    assert_close(scores(completer, turned).flip(0), scores(completer, QUESTION), atol=1e-5, rtol=1e-5)


def test_a_question_scores_the_same_in_any_batch(completer):
    others = [{"partial": ["i3"], "candidates": ["i5", "i6"]}, {"partial": ["i7", "i5"], "candidates": ["i0", "i1"]}]
    together = completer.score([others[0], QUESTION, others[1]], batch_size=1)
    assert_close(together[1].scores["ranker"], scores(completer, QUESTION), atol=1e-5, rtol=1e-5)


def test_features_count_where_items_are_shown_and_nowhere_else(model, completer):
    before = scores(completer, QUESTION)
    completer.processor.show_items = False
    titles_only = scores(completer, QUESTION)
    model.set_catalog(make_features(seed=9))
    assert torch.equal(scores(completer, QUESTION), titles_only)
    completer.processor.show_items = True
    assert not torch.allclose(scores(completer, QUESTION), before, atol=1e-3)


def test_a_new_item_scores_like_one_of_the_catalog_with_its_title_and_features(model, processor, completer):
    row = ITEM_IDS.index("i3")
    features = {name: matrix[row].tolist() for name, matrix in make_features().items()}
    new = {"title": processor.titles[row], "features": features}
    question = {**QUESTION, "candidates": ["i1", new, "i4", "i7"]}
    assert_close(scores(completer, question), scores(completer, QUESTION), atol=1e-5, rtol=1e-5)


def test_a_list_of_more_options_than_letters_is_scored_in_one_piece(completer):
    shirts = [{"title": f"shirt number {number}"} for number in range(40)]
    found = completer.score([{"partial": ["i0"], "candidates": [*shirts, "i1"]}])[0]
    assert found.scores["ranker"].isfinite().all() and len(found.scores["ranker"]) == 41
    assert found.unrestricted_choice == int(found.scores["ranker"].argmax())


@pytest.fixture
def titles_read(model, monkeypatch):
    """How many titles each forward pass of the backbone read."""
    numbers, read = [], model.read_titles
    monkeypatch.setattr(
        model, "read_titles", lambda **inputs: numbers.append(len(inputs["input_ids"])) or read(**inputs)
    )
    return numbers


def read_anew(model, processor):
    model.kept_titles = TitleStates()
    return scores(BundleCompleter(processor, ranker=model), QUESTION)


def test_a_title_is_read_once_however_many_questions_show_it(completer, titles_read):
    first = scores(completer, QUESTION)
    assert titles_read == [6]
    assert torch.equal(scores(completer, QUESTION), first) and titles_read == [6]
    scores(completer, {**QUESTION, "candidates": ["i1", "i5"]})
    assert titles_read == [6, 1]


def test_titles_are_read_again_after_the_backbone_has_changed(model, processor, completer):
    scores(completer, QUESTION)
    backbone = model.model.language_model
    changes = (
        lambda: torch.optim.SGD(backbone.parameters(), lr=0.1).step(),
        lambda: backbone.load_state_dict({k: 1.5 * v for k, v in backbone.state_dict().items()}),
        lambda: setattr(backbone.norm.weight, "data", 2 * backbone.norm.weight.data + torch.arange(32)),
    )
    for parameter in backbone.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    for change in changes:
        before = scores(completer, QUESTION)
        change()
        found = scores(completer, QUESTION)
        assert not torch.allclose(found, before, atol=1e-3)
        assert torch.equal(found, read_anew(model, processor))


def test_a_change_of_precision_or_features_is_not_missed(model, processor, completer):
    scores(completer, QUESTION)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scores(completer, QUESTION)
        assert torch.equal(found, read_anew(model, processor))
    model.set_catalog(make_features(seed=9))
    assert torch.equal(scores(completer, QUESTION), read_anew(model, processor))


def test_of_a_backbone_with_an_adapter_nothing_is_kept(model, processor):
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, lora).eval()
    completer = BundleCompleter(processor, ranker=adapted)
    with_adapter = scores(completer, QUESTION)
    with adapted.disable_adapter():
        without = scores(completer, QUESTION)
    assert not torch.allclose(without, with_adapter, atol=1e-3)
    assert torch.equal(scores(completer, QUESTION), with_adapter)


def test_no_more_is_kept_than_allowed_and_the_longest_unused_titles_go_first(model, titles_read):
    titles = TitleStates(most_bytes=3 * 4 * 32)  # three of 32 numbers
    titles.read(model, [[5], [6], [7]], batch_size=8)
    titles.read(model, [[5], [8]], batch_size=8)  # [6] goes
    titles.read(model, [[7], [5]], batch_size=8)
    assert titles_read == [3, 1]
    assert_close(titles.read(model, [[6], [8], [6]], 8), TitleStates().read(model, [[6], [8], [6]], 8))
    assert titles_read == [3, 1, 1, 2]


def test_beside_a_retriever_both_count(model, processor):
    retriever = make_retriever()
    found = BundleCompleter(processor, ranker=model, retriever=retriever).score([QUESTION])[0].scores
    assert set(found) == {"ranker", "retriever", "both"}
    assert_close(found["both"].exp().sum(), torch.tensor(1.0, dtype=torch.float64))


def test_of_a_whole_catalog_the_ranker_reads_the_best_items_of_the_retriever(model, processor):
    completer = BundleCompleter(processor, ranker=model, retriever=make_retriever())
    completer.combination = replace(completer.combination, num_ranked=3)
    found = completer.score([{"partial": ["i0"]}])[0].scores
    assert int(found["ranker"].isfinite().sum()) == 3
    best = found["retriever"].topk(3).indices
    assert found["ranker"][best].isfinite().all() and found["both"].isfinite().all()
    alone = BundleCompleter(processor, ranker=model).score([{"partial": ["i0"]}])[0].scores["ranker"]
    assert len(alone) == len(ITEM_IDS) - 1 and alone.isfinite().all()


def test_the_loss_is_the_cross_entropy_of_the_answer_and_an_index_of_minus_one_is_no_option(model):
    inputs = {
        "input_ids": torch.tensor([[5, 6], [7, 8], [9, 0]]),
        "attention_mask": torch.tensor([[1, 1], [1, 1], [1, 0]]),
    }
    partial, options = torch.tensor([[0, -1], [0, 1]]), torch.tensor([[1, 2, -1], [2, -1, -1]])
    output = model(**inputs, partial=partial, options=options, labels=torch.tensor([1, 0]))
    assert output.scores.isinf().tolist() == [[False, False, True], [False, True, True]]
    assert_close(output.loss, -(output.scores.log_softmax(dim=-1)[torch.arange(2), [1, 0]]).mean())


def test_a_saved_folder_gives_the_same_answers_by_package_auto_class_and_pipeline(completer, tmp_path):
    completer.save_pretrained(tmp_path)
    expected = scores(completer, QUESTION)
    assert_close(scores(load_completer(tmp_path), QUESTION), expected, atol=1e-5, rtol=1e-5)
    assert type(AutoModel.from_pretrained(tmp_path)).__name__ == "BundleMLLMForOptionScoring"
    answers = pipeline("bundle-completion", model=str(tmp_path))(QUESTION)
    assert answers[0]["item_id"] == QUESTION["candidates"][int(expected.argmax())]


def test_what_writes_text_refuses_it_in_one_line(completer, tmp_path):
    completer.save_pretrained(tmp_path / "model")
    with pytest.raises(BundleMLLMError, match="ranker without letters"):
        export_stock(tmp_path / "model", tmp_path / "export")
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "model")


def test_a_title_that_the_backbone_cannot_read_is_refused(processor):
    processor.max_length = 4
    with pytest.raises(ValueError, match="set max_title_tokens"):
        processor.item_tokens([{"title": "red linen shirt " * 5, "features": {}}])


def test_folders_of_a_ranker_with_letters_lack_what_compares(processor, tmp_path):
    ranker = make_model(separator_token_id=processor.separator_token_id)
    ranker.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="matching"):
        BundleMLLMForOptionScoring.from_pretrained(tmp_path)
    assert ranker.config.modalities == MODALITIES
