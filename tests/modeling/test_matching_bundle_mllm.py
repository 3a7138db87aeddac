"""Matching: option scores from item features, added to the letters where a prompt is answered, and nowhere else."""

import math

import pytest
import torch
from tiny_models import ITEM_IDS, MODALITIES, make_backbone, make_features, make_model, make_processor

from bundle_mllm.model_folder import load_model, save_model
from bundle_mllm.modeling import BundleMLLMConfig
from bundle_mllm.modeling.matching_bundle_mllm import log_softmax_by

QUESTIONS = [
    {"partial": ["i0", "i5"], "candidates": ["i2", "i3", "i1"]},
    {"partial": ["i4"], "candidates": ["i6", "i0", "i5", "i7", "i1"]},
]


def make_pair(**fields):
    processor = make_processor(marks_options=True, max_length=512, **fields)
    model = make_model(
        separator_token_id=processor.separator_token_id,
        standardize_features=True,
        matching_hidden_size=8,
        **processor.matching_fields(),
    )
    present = {name: torch.tensor([(row + i) % 4 > 0 for row in range(8)]) for i, name in enumerate(MODALITIES)}
    model.set_catalog(make_features(), present, fit_statistics=True)
    return model.eval(), processor


@pytest.fixture(scope="module")
def pair():
    return make_pair()


def by_hand(model, question):
    """The formula of the docstring, item by item."""
    matching, fusion, catalog = model.model.matching, model.model.fusion, model.model.catalog

    def item(item_id):
        row, total = ITEM_IDS.index(item_id), 0
        for column, (name, encode) in enumerate(matching.maps.items()):
            if catalog.present[row, column]:
                total = total + encode(
                    (catalog.features[name][row] - fusion.feature_mean[name]) / fusion.feature_std[name]
                )
        return total[:8], total[8:16], total[16]

    def likeness(first, second):
        rows, total = [ITEM_IDS.index(first), ITEM_IDS.index(second)], 0
        for column, name in enumerate(matching.maps):
            x, y = (catalog.features[name][rows] - fusion.feature_mean[name]) / fusion.feature_std[name]
            both = catalog.present[rows, column].all()
            total = total + matching.likeness[column] * torch.cosine_similarity(x, y, dim=0) * both
        return total

    bundle = sum(item(i)[0] / item(i)[0].norm() for i in question["partial"])
    scores = []
    for candidate in question["candidates"]:
        _, key, bias = item(candidate)
        like = sum(likeness(shown, candidate) for shown in question["partial"]) / len(question["partial"])
        scores.append(matching.temperature * torch.cosine_similarity(bundle, key, dim=0) + bias + like)
    return torch.cat(scores).log_softmax(0)


def without(model, call):
    matching, model.model.matching = model.model.matching, None
    try:
        return call()
    finally:
        model.model.matching = matching


@torch.no_grad()
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_the_log_probabilities_are_added_to_the_letters_where_each_prompt_ends(pair, padding_side):
    model, processor = pair
    processor.tokenizer.padding_side = padding_side
    inputs = processor(QUESTIONS, return_tensors="pt")
    hidden = model.model(**inputs).last_hidden_state
    changed = hidden - without(model, lambda: model.model(**inputs).last_hidden_state)
    logits = model(**inputs).logits - 0.25 * without(model, lambda: model(**inputs).logits)
    letters = processor.answer_token_ids(26)
    for number, question in enumerate(QUESTIONS):
        end = int(inputs["attention_mask"][number].nonzero().max())
        expected = torch.zeros(26)
        num_options = len(question["candidates"])
        expected[:num_options] = by_hand(model, question) + math.log(num_options)
        assert torch.allclose(logits[number, end, letters], expected, atol=1e-4)
        assert expected.abs().max() > 0.5
        changed[number, end] = 0.0
    assert not changed.any()


@torch.no_grad()
def test_every_way_to_score_gives_the_same_logits(pair):
    model, processor = pair
    for question in QUESTIONS:
        inputs, letters = (
            processor(question, return_tensors="pt"),
            processor.answer_token_ids(len(question["candidates"])),
        )
        last = model(**inputs).logits[:, -1]
        assert torch.allclose(model(**inputs, logits_to_keep=1).logits[:, -1], last, atol=1e-5)
        assert torch.allclose(model(**inputs, logits_to_keep=torch.tensor([-1])).logits[:, -1], last, atol=1e-5)
        assert torch.allclose(model.last_logits(**inputs), last, atol=1e-5)
        options = model.option_logits(**inputs, option_token_ids=torch.tensor(letters))
        assert torch.allclose(options, last[:, letters], atol=1e-5)
        backwards = model.option_logits(**inputs, option_token_ids=torch.tensor(letters[::-1]))
        assert torch.allclose(backwards, last[:, letters[::-1]], atol=1e-5)


@torch.no_grad()
def test_what_follows_the_answer_is_not_matched_again(pair):
    model, processor = pair
    inputs = processor(QUESTIONS[0], return_tensors="pt")
    cached = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    again = model.generate(**inputs, max_new_tokens=3, do_sample=False, use_cache=False)
    assert torch.equal(cached, again)
    assert torch.allclose(model(cached).logits[:, -1], without(model, lambda: model(cached).logits)[:, -1])


@torch.no_grad()
def test_an_item_of_this_call_only_is_matched_by_its_features(pair):
    model, processor = pair
    catalog, row = model.model.catalog, 3
    features = {
        name: catalog.features[name][row].tolist()
        for i, name in enumerate(catalog.modalities)
        if catalog.present[row, i]
    }
    known = {"partial": ["i0"], "candidates": ["i2", "i3"]}
    new = {"partial": ["i0"], "candidates": ["i2", {"title": "green hat", "features": features}]}
    scores = [model.last_logits(**processor(question, return_tensors="pt")) for question in (known, new)]
    assert torch.allclose(*scores, atol=1e-5)


@torch.no_grad()
def test_other_features_change_the_answer_and_titles_alone_are_not_matched(pair):
    model, processor = pair
    shown, titles = (processor(QUESTIONS[1], show_items=shows, return_tensors="pt") for shows in (True, False))
    assert not torch.allclose(model(**shown).logits, without(model, lambda: model(**shown).logits))
    assert torch.equal(model(**titles).logits, without(model, lambda: model(**titles).logits))


def test_two_prompts_in_one_row_are_refused(pair):
    model, processor = pair
    both = torch.tensor([[*processor(QUESTIONS[0])["input_ids"][0], *processor(QUESTIONS[1])["input_ids"][0]]])
    with pytest.raises(ValueError, match="packing=False"):
        model(both)


def test_the_backbone_reads_both_separators_alike(pair):
    model, processor = pair
    ids = processor(QUESTIONS[0], return_tensors="pt")["input_ids"]
    assert processor.tokenizer.option_separator_token_id in ids
    alike = ids.masked_fill(ids == processor.tokenizer.option_separator_token_id, processor.separator_token_id)
    assert torch.equal(model.model.embed(ids), model.model.embed(alike))


def test_it_learns_to_answer_from_features_with_everything_else_frozen():
    model, processor = make_pair()
    processor.tokenizer.padding_side = "left"
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("matching" in name)
    inputs = processor(QUESTIONS, return_tensors="pt")
    answers = torch.tensor([processor.answer_token_ids(5)[4], processor.answer_token_ids(5)[2]])
    optimizer, losses = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01), []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(**inputs, logits_to_keep=1).logits[:, -1], answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1


@torch.no_grad()
def test_its_letters_follow_the_head_and_leave_the_other_tokens_alone():
    model, processor = make_pair()
    letters, eos = processor.answer_token_ids(26), processor.tokenizer.eos_token_id
    head = torch.randn(420, 32) * 0.01 + torch.randn(32)  # tokens that are never written are much alike ...
    head[[*letters, eos]] = torch.randn(27, 32)  # ... and the end of a text is not
    model.lm_head.weight.copy_(head)
    model.match_letters()
    added = head @ model.model.matching.letters.T  # [vocab_size, 26]
    assert torch.allclose(added[letters], torch.eye(26), atol=1e-3)
    added[letters] = 0.0
    assert added.abs().max() < 0.2


def test_in_training_it_is_silent_so_that_the_backbone_learns_to_answer_alone(pair):
    model, processor = pair
    inputs = processor(QUESTIONS[0], return_tensors="pt")
    alone = without(model, lambda: model(**inputs).logits)
    assert torch.equal(model.train()(**inputs).logits, alone)
    assert not torch.allclose(model.eval()(**inputs).logits, alone)


def test_it_is_saved_and_loaded_and_another_wording_is_refused(tmp_path):
    model, processor = make_pair()
    save_model(model, processor, tmp_path)
    loaded, reader = load_model(tmp_path)
    with torch.no_grad():
        expected = model.last_logits(**processor(QUESTIONS[0], return_tensors="pt"))
        assert torch.equal(loaded.last_logits(**reader(QUESTIONS[0], return_tensors="pt")), expected)
    reader.answer_cue = "\nThe answer is"
    reader.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="answer_distance"):
        load_model(tmp_path)


def test_a_matching_that_could_not_find_its_options_is_refused():
    with pytest.raises(ValueError, match="answer_distance, standardize_features"):
        BundleMLLMConfig(
            modalities=MODALITIES, matching_hidden_size=8, option_separator_token_id=5, answer_token_ids=[1, 2]
        )
    with pytest.raises(ValueError, match="0 modalities"):
        BundleMLLMConfig(matching_hidden_size=8)
    with pytest.raises(ValueError, match="marks_options=True"):
        make_processor().matching_fields()


def test_a_chat_template_and_text_after_the_options_are_counted():
    processor = make_processor(
        marks_options=True, prompt_template="{partial}\n{options}\nthat is all", answer_cue=" :"
    )
    fields = processor.matching_fields()
    ids = processor({"partial": ["i0"], "candidates": ["i1", "i2", "i3"]})["input_ids"][0]
    assert ids[-1 - fields["answer_distance"]] == processor.tokenizer.item_token_offset + 3


def test_log_softmax_by_group_is_that_of_each_group():
    scores, groups = torch.tensor([1.0, 1000.0, 2.0, 1001.0, -5.0]), torch.tensor([0, 1, 0, 1, 2])
    expected = torch.tensor([-1.0, -1.0, 0.0, 0.0, 0.0]) - math.log1p(math.exp(-1)) * torch.tensor([1, 1, 1, 1, 0])
    assert torch.allclose(log_softmax_by(scores, groups), expected, atol=1e-6)


def test_without_it_nothing_is_added_to_a_model():
    backbone = make_backbone()
    assert make_model(backbone).model.matching is None
