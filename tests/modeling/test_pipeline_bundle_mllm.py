import pytest
import torch
from tiny_models import TITLES, make_features, make_model, make_processor
from transformers import pipeline

HAT = {"title": "new hat", "features": {"visual": [0.5] * 12}, "item_id": "new-1"}
QUESTIONS = [
    {"partial": ["i0", "i1"], "candidates": ["i2", "i3", "i4"]},
    {"partial": ["i0"], "candidates": ["i7", "i3"]},
    {"partial": ["i5", HAT], "candidates": ["i6", {"title": "bag", "features": {"user_item": [1.0] * 6}}, "i4", "i1"]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, processor = tmp_path_factory.mktemp("model"), make_processor()
    make_model(separator_token_id=processor.separator_token_id).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def completer(folder):
    return pipeline("bundle-completion", model=str(folder), device="cpu")


def close(one, other, tolerance=1e-5):
    assert [{**option, "score": 0} for option in one] == [{**option, "score": 0} for option in other]
    assert torch.allclose(
        torch.tensor([option["score"] for option in one]),
        torch.tensor([option["score"] for option in other]),
        atol=tolerance,
    )


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_options_come_best_first_with_probabilities(completer, question):
    options = completer(question)
    scores = [option["score"] for option in options]
    assert scores == sorted(scores, reverse=True) and abs(sum(scores) - 1) < 1e-6
    assert sorted(option["letter"] for option in options) == list("ABCD")[: len(question["candidates"])]
    for option in options:
        entry = question["candidates"]["ABCD".index(option["letter"])]
        if isinstance(entry, str):
            assert (option["item_id"], option["title"]) == (entry, TITLES[int(entry[1:])])
        else:
            assert (option["item_id"], option["title"]) == (None, "bag")


def test_scores_are_the_softmax_of_the_next_token_logits(completer):
    processor, model = completer.processor, completer.model
    logits = model(**processor(QUESTIONS[0], return_tensors="pt")).logits[0, -1]
    expected = logits[processor.answer_token_ids(3)].softmax(-1)
    options = {option["letter"]: option["score"] for option in completer(QUESTIONS[0])}
    assert torch.allclose(torch.tensor([options[letter] for letter in "ABC"]), expected, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_batch_equals_its_single_questions(completer, batch_size):
    for together, question in zip(completer(QUESTIONS, batch_size=batch_size), QUESTIONS, strict=True):
        close(together, completer(question))


def test_no_questions_have_no_answers(completer):
    assert completer([]) == []


def test_a_generator_of_questions_streams_its_answers(completer):
    for together, question in zip(completer(question for question in QUESTIONS), QUESTIONS, strict=True):
        close(together, completer(question))


def test_a_dict_item_scores_like_the_same_item_of_the_catalog(completer):
    features = make_features()
    as_dict = {"title": TITLES[3], "features": {name: matrix[3] for name, matrix in features.items()}, "item_id": "i3"}
    question = QUESTIONS[0]
    close(completer({**question, "candidates": ["i2", as_dict, "i4"]}), completer(question), 1e-6)


def test_top_k_keeps_the_best(completer):
    assert completer(QUESTIONS[0], top_k=1) == completer(QUESTIONS[0])[:1]


def test_without_candidates_the_rest_of_the_catalog_is_ranked(completer):
    for question in ({"partial": ["i0", HAT]}, {"partial": ["i0", HAT], "candidates": None}):
        options = completer(question)
        assert sorted(option["item_id"] for option in options) == [f"i{n}" for n in range(1, 8)]
        close(options, completer({**question, "candidates": [f"i{n}" for n in range(1, 8)]}))


def test_a_dict_item_with_the_id_of_a_catalog_item_is_no_candidate_of_its_bundle(completer):
    options = completer({"partial": [{**HAT, "item_id": "i3"}]})
    assert {option["item_id"] for option in options} == {f"i{n}" for n in range(8)} - {"i3"}


def test_candidates_may_be_any_collection_of_ids(completer):
    close(
        completer({"partial": ("i0", "i1"), "candidates": {"i2": 0, "i3": 0, "i4": 0}.keys()}), completer(QUESTIONS[0])
    )


def test_options_without_finite_scores_are_an_error(completer, monkeypatch):
    norm = completer.model.model.language_model.norm
    monkeypatch.setattr(norm.weight, "data", torch.full_like(norm.weight, torch.nan))
    for question in ({**QUESTIONS[0], "question_id": "q1"}, {"partial": ["i0"], "candidates": MANY}):
        with pytest.raises(ValueError, match=r"options of the question .*partial \['i0'.* score nan, .*: repair"):
            completer(question)


MANY = [{"title": f"hat {n}", "features": {"visual": [n / 9.0] * 12}, "item_id": f"new-{n}"} for n in range(30)]


def test_a_list_too_long_for_letters_is_ranked_in_groups(completer):
    question = {"partial": ["i0", "i1"], "candidates": [*MANY, "i2", "i3"]}
    options = completer(question)
    scores = [option["score"] for option in options]
    assert {option["item_id"] for option in options} == {f"new-{n}" for n in range(30)} | {"i2", "i3"}
    assert scores == sorted(scores, reverse=True) and abs(sum(scores) - 1) < 1e-5
    assert {option["letter"] for option in options} == {None}
    assert completer(question) == options
    assert completer(question, top_k=2) == options[:2]
    together = completer([QUESTIONS[0], question, QUESTIONS[2]], batch_size=3)
    for one, other in zip(together, [completer(QUESTIONS[0]), options, completer(QUESTIONS[2])], strict=True):
        close(one, other, 1e-4)


def test_groups_are_no_larger_than_asked_or_than_the_model_knows(completer, monkeypatch):
    asked = []
    inner = completer._option_logits
    monkeypatch.setattr(completer, "_option_logits", lambda qs: asked.extend(qs) or inner(qs))
    completer({"partial": ["i0"], "candidates": MANY}, group_size=4)
    assert max(len(question["candidates"]) for question in asked) == 4
    asked.clear()
    monkeypatch.setattr(completer.processor, "max_options", 3)
    completer({"partial": ["i0"], "candidates": MANY[:5]})
    assert max(len(question["candidates"]) for question in asked) == 3


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("nope", "'nope' is not among the 8 items"),
        ({"title": 3}, "title of item .* is 3"),
        ("i0", "'i0' is in the partial bundle already"),
        ({"title": "again", "item_id": "new-0"}, "'new-0' is more than once in candidates"),
    ],
)
def test_a_wrong_item_far_down_a_long_list_is_an_error(completer, entry, message):
    with pytest.raises(ValueError, match=message):
        completer({"partial": ["i0"], "candidates": [*MANY, entry]})


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({**QUESTIONS[0], "top_k": 1}, r"keys \['top_k'\], which would be ignored.*are parameters"),
        ({"partial": 5}, "partial of the question is 5"),
        ({"partial": [["i0"]]}, r"\['i0'\] is no item"),
        ({"partial": ["i0"], "candidates": 5}, "candidates of the question is 5"),
        ("i0", "partial of the question is None"),
    ],
)
def test_what_is_no_question_is_an_error(completer, question, message):
    with pytest.raises(ValueError, match=message):
        completer(question)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"topk": 1}, "no parameters \\['topk'\\]"),
        ({"group_size": 2}, "group_size is 2"),
    ],
)
def test_a_wrong_parameter_is_an_error(completer, options, message):
    with pytest.raises(ValueError, match=message):
        completer(QUESTIONS[0], **options)


def test_a_saved_pipeline_holds_model_items_and_wording(completer, tmp_path):
    completer.save_pretrained(tmp_path)
    loaded = pipeline("bundle-completion", model=str(tmp_path), device="cpu")
    close(loaded(QUESTIONS[0]), completer(QUESTIONS[0]))


def test_a_model_in_memory_needs_its_processor(completer):
    again = pipeline("bundle-completion", model=completer.model, processor=completer.processor, device="cpu")
    close(again(QUESTIONS[2]), completer(QUESTIONS[2]))


def test_a_processor_of_another_catalog_is_an_error(completer):
    model = make_model(features=make_features(num_items=5))
    with pytest.raises(ValueError, match="processor has 8 items and the model 5"):
        pipeline("bundle-completion", model=model, processor=completer.processor, device="cpu")
