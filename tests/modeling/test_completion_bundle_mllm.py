"""The completer: probabilities of ranker and retriever joined as its formula says, for any number of candidates."""

from dataclasses import replace

import pytest
import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from tiny_models import (
    ITEM_IDS,
    TITLES,
    make_backbone,
    make_completer,
    make_features,
    make_item_processor,
    make_model,
    make_pairs,
    make_processor,
    make_retriever,
)
from torch.testing import assert_close

from bundle_mllm.modeling import BundleCombination, BundleCompleter

WEIGHT, TEMPERATURE = 0.7, 1.3
QUESTION = {"partial": ["i0", "i1"], "candidates": ["i5", "i2", "i7", "i4", "i3", "i6"]}
OPEN_QUESTION = {"partial": ["i0", "i1"]}
HAT = {"title": "new hat", "features": {"visual": [0.5] * 12}}


@pytest.fixture(scope="module")
def completer():
    return make_completer(combination=BundleCombination(WEIGHT, TEMPERATURE))


@torch.no_grad()
def ranker_by_hand(completer, partial, candidates):
    """Log-probabilities of the letters after the rendered prompt."""
    processor, model = completer.processor, completer.ranker
    ids = processor.tokenizer(processor.render({"partial": partial, "candidates": candidates}), return_tensors="pt")
    logits = model(**ids).logits[0, -1].double()
    return logits[processor.answer_token_ids(len(candidates))].log_softmax(0)


@torch.no_grad()
def retriever_by_hand(completer, partial, candidates):
    rows = [torch.tensor([[int(item_id[1:]) for item_id in ids]]) for ids in (partial, candidates)]
    return completer.retriever(*rows).scores[0].double().log_softmax(0)


def joined_by_hand(completer, partial, candidates, shown):
    """The probability that the retriever gives the items shown to the ranker, dealt out anew among these."""
    retriever = retriever_by_hand(completer, partial, candidates)
    ranker = ranker_by_hand(completer, partial, [candidates[i] for i in shown])
    probabilities = retriever.exp()
    mass = probabilities[shown].sum()
    probabilities[shown] = mass * ((WEIGHT * ranker + retriever[shown]) / TEMPERATURE).softmax(0)
    return probabilities


def score(completer, question, **options):
    [completion] = completer.score([question], **options)
    return completion


def as_dict(completion):
    return dict(zip(completion.candidates, completion.answer.exp().tolist(), strict=True))


def approx(expected):
    return pytest.approx(expected, abs=1e-4)  # of logits of a few units in float32, whose prompts may be padded


def test_both_joined_are_the_softmax_of_the_weighted_log_probabilities(completer):
    completion = score(completer, QUESTION)
    expected = joined_by_hand(completer, *QUESTION.values(), list(range(6)))
    assert_close(completion.scores["both"].exp(), expected, atol=1e-4, rtol=0)
    assert_close(completion.scores["ranker"], ranker_by_hand(completer, *QUESTION.values()), atol=1e-4, rtol=0)
    assert_close(completion.scores["retriever"], retriever_by_hand(completer, *QUESTION.values()), atol=1e-4, rtol=0)
    assert completion.answer is completion.scores["both"]
    assert not torch.allclose(expected, completion.scores["ranker"].exp(), atol=1e-2)
    assert not torch.allclose(expected, completion.scores["retriever"].exp(), atol=1e-2)


@pytest.mark.parametrize("max_options", [3, 4, 5])
def test_of_a_long_list_the_ranker_sees_the_retrievers_best_and_all_others_keep_their_probability(
    completer, max_options
):
    completion = score(completer, QUESTION, max_options=max_options)
    retriever = retriever_by_hand(completer, *QUESTION.values())
    shown = sorted(sorted(range(6), key=lambda i: -retriever[i])[:max_options])
    assert_close(completion.answer.exp(), joined_by_hand(completer, *QUESTION.values(), shown), atol=1e-4, rtol=0)
    hidden = [i for i in range(6) if i not in shown]
    assert_close(completion.answer[hidden], completion.scores["retriever"][hidden])
    assert completion.scores["ranker"][hidden].isinf().all() and completion.scores["ranker"][shown].isfinite().all()
    assert completion.answer.exp().sum() == approx(1)


@torch.no_grad()
def test_the_unrestricted_choice_in_a_long_list_is_the_candidate_whose_letter_the_ranker_saw():
    completer = make_completer()
    shown = score(completer, QUESTION, max_options=3).scores["ranker"].isfinite().nonzero().flatten().tolist()
    prompt = {**QUESTION, "candidates": [QUESTION["candidates"][i] for i in shown]}
    inputs = completer.processor(prompt, return_tensors="pt")
    letter = completer.processor.answer_token_ids(3)[2]
    completer.ranker.lm_head.weight.data[letter] = 100 * completer.ranker.model(**inputs).last_hidden_state[0, -1]
    assert score(completer, QUESTION, max_options=3).unrestricted_choice == shown[2] != 2


def test_the_processor_knows_how_many_options_its_ranker_was_trained_on(completer):
    shorter = BundleCompleter(
        make_processor(max_options=3), completer.ranker, completer.retriever, completer.combination
    )
    assert_close(score(shorter, QUESTION).answer, score(completer, QUESTION, max_options=3).answer)


@pytest.mark.parametrize("max_options", [26, 3])
@pytest.mark.parametrize("parts", [(True, True), (False, True), (True, False)])
def test_without_candidates_the_rest_of_the_catalog_is_scored_as_if_it_were_given(parts, max_options):
    completer = make_completer(*parts)
    rest = [item_id for item_id in ITEM_IDS if item_id not in OPEN_QUESTION["partial"]]
    found = score(completer, OPEN_QUESTION, max_options=max_options)
    if completer.retriever is not None:  # best first; the ranker reads them in this order
        assert found.scores["retriever"].tolist() == sorted(found.scores["retriever"].tolist(), reverse=True)
    expected = score(completer, {**OPEN_QUESTION, "candidates": found.candidates}, max_options=max_options)
    assert sorted(found.candidates) == rest
    assert as_dict(found) == approx(as_dict(expected))


def test_of_a_whole_catalog_the_ranker_sees_num_ranked_items_and_of_candidates_all():
    completer = make_completer()
    completer.combination = replace(completer.combination, num_ranked=3)
    found = score(completer, OPEN_QUESTION)
    expected = score(make_completer(), OPEN_QUESTION, max_options=3)
    assert as_dict(found) == approx(as_dict(expected))
    assert found.scores["ranker"].isfinite().sum() == 3 == completer.num_ranked
    assert score(completer, QUESTION).scores["ranker"].isfinite().all()


def test_the_best_items_of_a_catalog_have_their_share_of_the_whole(completer):
    every, best = score(completer, OPEN_QUESTION), score(completer, OPEN_QUESTION, num_retrieved=2)
    assert list(best.candidates) == list(every.candidates)[:2]
    assert_close(best.scores["retriever"], every.scores["retriever"][:2])
    assert best.answer.exp().sum() == approx(best.scores["retriever"].exp().sum().item())


def test_an_item_that_the_partial_bundle_holds_as_a_dict_is_not_found_in_the_catalog():
    for parts in ((True, True), (False, True), (True, False)):
        completer = make_completer(*parts)
        questions = [{"partial": [{**HAT, "item_id": "i3"}]}, {"partial": ["i4", {**HAT, "item_id": "new"}]}]
        found = [set(completion.candidates) for completion in completer.score(questions)]
        assert found == [set(ITEM_IDS) - {"i3"}, set(ITEM_IDS) - {"i4"}]


def test_the_retrievers_scores_do_not_depend_on_the_order_of_the_candidates():
    completer = make_completer(ranker=False)
    turned = {**QUESTION, "candidates": QUESTION["candidates"][::-1]}
    assert as_dict(score(completer, turned)) == approx(as_dict(score(completer, QUESTION)))


def test_two_candidates_in_both_orders_have_scores_that_do_not_depend_on_their_order(completer):
    one, other = ({**QUESTION, "candidates": pair} for pair in (["i5", "i2"], ["i2", "i5"]))
    assert as_dict(score(completer, one, permutations=2)) == approx(as_dict(score(completer, other, permutations=2)))
    assert as_dict(score(completer, one)) != approx(as_dict(score(completer, other)))


def test_several_orders_are_joined_one_by_one_and_their_mean_counts(completer):
    completion = score(completer, QUESTION, permutations=3)
    assert completion.orders["ranker"].shape == completion.orders["both"].shape == (3, 6)
    assert_close(completion.orders["both"][0], score(completer, QUESTION).answer, atol=1e-4, rtol=0)
    assert_close(completion.scores["ranker"], completion.orders["ranker"].mean(0))
    mixed = WEIGHT * completion.orders["ranker"].mean(0) + completion.scores["retriever"]
    assert_close(completion.answer, (mixed / TEMPERATURE).log_softmax(0))


QUESTIONS = [
    QUESTION,
    OPEN_QUESTION,
    {"partial": ["i5", HAT], "candidates": ["i6", {"title": "bag", "features": {"user_item": [1.0] * 6}}, "i4"]},
    {"partial": [{"title": "scarf"}]},
    {"partial": ["i3"], "candidates": ["i7", "i0"]},
]


@pytest.mark.parametrize("parts", [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("options", [{}, {"max_options": 4, "batch_size": 2}])
def test_a_batch_equals_its_single_questions(parts, options):
    completer = make_completer(*parts)
    for together, question in zip(completer.score(QUESTIONS, **options), QUESTIONS, strict=True):
        alone = score(completer, question, **options)
        assert list(together.candidates) == list(alone.candidates)
        assert_close(together.answer.exp(), alone.answer.exp(), atol=1e-4, rtol=0)


def test_no_questions_have_no_answers(completer):
    assert completer.score([]) == []


@pytest.mark.parametrize("parts", [(True, True), (False, True), (True, False)])
def test_a_single_candidate_is_certain_to_every_part(parts):
    completer = make_completer(*parts)
    single, other = completer.score([{**QUESTION, "candidates": ["i5"]}, QUESTION], permutations=2)
    assert set(single.scores) == set(completer.parts) == set(other.scores)
    assert all(scores.tolist() == pytest.approx([0]) for scores in single.scores.values())
    assert all(orders.shape == (2, 1) for orders in single.orders.values())
    assert single.orders.keys() == other.orders.keys()


def test_the_best_item_of_a_catalog_alone_has_its_share_and_the_scores_of_every_part(completer):
    best = score(completer, OPEN_QUESTION, num_retrieved=1)
    assert best.scores.keys() == {"ranker", "retriever", "both"}
    assert best.answer.tolist() == pytest.approx(best.scores["retriever"].tolist())


def test_the_processor_that_a_completer_is_given_stays_as_it_was():
    processor = make_processor(modalities=None)
    completer = BundleCompleter(processor, make_model(), make_retriever())
    completer.set_catalog(**new_catalog())
    assert processor.modalities is None and processor.other_modalities == {}
    assert processor.item_ids == tuple(ITEM_IDS) and completer.processor.item_ids != processor.item_ids


@pytest.mark.parametrize("parts", [(True, True), (False, True), (True, False)])
def test_items_without_any_features_have_probabilities(parts):
    completer = make_completer(*parts)
    present = {name: torch.zeros(8, dtype=torch.bool) for name in completer.modalities}
    completer.set_catalog(ITEM_IDS, TITLES, make_features(), present)
    for question in (QUESTION, OPEN_QUESTION):
        answer = score(completer, question).answer
        assert answer.isfinite().all() and answer.exp().sum() == approx(1)


@pytest.mark.parametrize("config", [PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig])
def test_a_ranker_with_a_learned_prompt_is_refused_in_one_line(config):
    ranker = get_peft_model(make_model(), config(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match=r"adapter of the type P\w+, whose learned prompt would be left out") as error:
        BundleCompleter(make_processor(), ranker)
    assert "\n" not in str(error.value)


def test_one_model_alone_answers_by_itself(completer):
    for part, alone in (("ranker", completer.ranker), ("retriever", completer.retriever)):
        completion = score(BundleCompleter(completer.processor, **{part: alone}), QUESTION)
        assert set(completion.scores) == {part}
        assert_close(completion.answer, score(completer, QUESTION).scores[part])
    assert completer.parts == ("ranker", "retriever", "both")
    assert BundleCompleter(completer.processor, ranker=completer.ranker).parts == ("ranker",)


def test_a_ranker_alone_ranks_long_lists_in_groups(completer):
    alone = BundleCompleter(completer.processor, ranker=completer.ranker)
    completion = score(alone, QUESTION, max_options=3)
    assert completion.answer.isfinite().all() and completion.answer.exp().sum() == approx(1)
    assert completion.unrestricted_choice == completion.answer.argmax()


def test_scoring_leaves_each_model_in_its_mode(completer):
    completer.ranker.train()
    try:
        expected = score(completer, QUESTION).answer
        assert completer.ranker.training and not completer.retriever.training
    finally:
        completer.ranker.eval()
    assert_close(score(completer, QUESTION).answer, expected)


def test_answers_come_best_first_and_explain_what_each_model_contributed(completer):
    answers, completion = completer.complete(QUESTION, explain=True), score(completer, QUESTION)
    assert [answer["score"] for answer in answers] == sorted((a["score"] for a in answers), reverse=True)
    for answer in answers:
        place = QUESTION["candidates"].index(answer["item_id"])
        assert answer["letter"] == "ABCDEF"[place] and answer["title"] == TITLES[int(answer["item_id"][1:])]
        explanation = answer["explanation"]
        for part in ("ranker", "retriever"):
            assert explanation[part] == approx(completion.scores[part][place].exp().item())
        terms = explanation["retriever_terms"]
        assert set(terms) == {"towers", "cosine_user_item", "cosine_visual", "bias", "co_occurrence"}
    sums = torch.tensor([sum(a["explanation"]["retriever_terms"].values()) for a in answers])
    expected = torch.tensor([a["explanation"]["retriever"] for a in answers])
    assert_close(sums.softmax(0), expected, atol=1e-4, rtol=0)  # the terms sum to the scores, up to a constant
    assert "explanation" not in completer.complete(QUESTION)[0]


def test_an_explanation_lacks_the_ranker_where_it_was_not_shown_the_candidate(completer):
    answers = completer.complete(QUESTION, explain=True, max_options=3)
    seen = score(completer, QUESTION, max_options=3).scores["ranker"].isfinite().tolist()
    shown = {item_id for item_id, is_shown in zip(QUESTION["candidates"], seen, strict=True) if is_shown}
    assert {answer["item_id"] for answer in answers if "ranker" in answer["explanation"]} == shown
    assert len(shown) == 3 and all("retriever" in answer["explanation"] for answer in answers)


def test_some_candidates_of_a_longer_list_can_be_ranked_with_scores_that_are_at_hand(completer):
    retrieved = list(completer.catalog_scores([QUESTION["partial"]]).log_softmax(dim=-1))
    shown = [[5, 2, 7]]
    [found] = completer.rank([{**QUESTION, "candidates": ITEM_IDS}], retrieved, shown)
    ranker = ranker_by_hand(completer, QUESTION["partial"], [f"i{row}" for row in shown[0]])
    expected, logs = retrieved[0].double(), retrieved[0].double()[shown[0]]
    expected[shown[0]] = logs.logsumexp(0) + ((WEIGHT * ranker + logs) / TEMPERATURE).log_softmax(0)
    assert_close(found.answer, expected, atol=1e-4, rtol=1e-4)
    [alone] = completer.rank([{**QUESTION, "candidates": ITEM_IDS}], retrieved, [[]])
    assert set(alone.scores) == {"retriever"} and torch.equal(alone.answer, retrieved[0])


@pytest.mark.parametrize("parts", [(True, True), (False, True), (True, False)])
def test_of_a_whole_catalog_top_k_keeps_the_best_and_each_can_be_explained(parts):
    completer = make_completer(*parts)
    every, best = (completer.complete(OPEN_QUESTION, top_k=top_k, explain=True) for top_k in (None, 2))
    assert [answer["item_id"] for answer in best] == [answer["item_id"] for answer in every][:2]
    assert {answer["letter"] for answer in every} == {None} and len(every) == 6
    assert set(best[0]["explanation"]) - {"retriever_terms"} == set(completer.parts) - {"both"}


def test_a_dict_item_scores_as_the_same_item_of_the_catalog_but_for_its_groups():
    completer, features = make_completer(groups={}), make_features()
    copy = {"title": TITLES[3], "features": {name: matrix[3] for name, matrix in features.items()}}
    question = {**QUESTION, "candidates": ["i5", copy, "i2"]}
    expected = score(completer, {**QUESTION, "candidates": ["i5", "i3", "i2"]})
    assert_close(score(completer, question).answer, expected.answer, atol=1e-4, rtol=0)


def test_a_dict_item_may_have_features_that_only_one_of_the_models_reads():
    modalities = {"textual": 4, "visual": 12}
    completer = BundleCompleter(
        make_processor(), make_model(separator_token_id=401), make_retriever(modalities=modalities)
    )
    features = {"textual": [1.0] * 4, "user_item": [1.0] * 6, "visual": [0.5] * 12}
    for names in (("textual",), ("user_item",), ("textual", "user_item", "visual")):
        item = {"title": "hat", "features": {name: features[name] for name in names}}
        plain = score(completer, {**QUESTION, "candidates": ["i5", {"title": "hat"}, "i2"]})
        found = score(completer, {**QUESTION, "candidates": ["i5", item, "i2"]})
        for part, reads in (("ranker", {"user_item", "visual"}), ("retriever", set(modalities))):
            is_same = torch.allclose(found.scores[part], plain.scores[part], atol=1e-4)
            assert is_same == reads.isdisjoint(names), (part, names)
    with pytest.raises(ValueError, match=r"features of 'acoustic', which this model cannot read"):
        score(completer, {**QUESTION, "candidates": ["i5", {"title": "x", "features": {"acoustic": [1.0]}}]})
    inputs = completer.processor({**QUESTION, "candidates": ["i5", {"title": "hat"}]}, return_tensors="pt")
    assert completer.ranker(**inputs).logits.isfinite().all()  # the processor still writes what the ranker reads


def new_catalog(num_items=5, **changes):
    return {
        "item_ids": [f"n{row}" for row in range(num_items)],
        "titles": [f"new {row}" for row in range(num_items)],
        "features": make_features(seed=7, num_items=num_items),
        "present": {"visual": torch.arange(num_items) != 1},
        "memberships": {"textual": make_pairs([[0, 1], [2, 3]])},
        **changes,
    }


@torch.no_grad()
def test_a_new_catalog_is_that_of_both_models_and_the_processor():
    completer = make_completer()
    completer.set_catalog(**new_catalog())
    rows = {name: completer.retriever.catalog_rows()[name] for name in ("features", "present")}
    ranker = completer.ranker.catalog_rows()
    for kind, matrices in rows.items():
        assert all(torch.equal(matrix, ranker[kind][name]) for name, matrix in matrices.items())
    assert completer.retriever.config.memberships == {"textual": 4, "user_item": 0}
    for config in (completer.ranker.config, completer.retriever.config):
        assert (config.num_items, config.items_hash) == (5, completer.processor.items_hash)
    answers = completer.complete({"partial": ["n0"]})
    assert {answer["item_id"]: answer["title"] for answer in answers} == {f"n{n}": f"new {n}" for n in range(1, 5)}


@pytest.mark.parametrize("only", ["visual", "user_item", "textual"])
def test_items_of_which_one_model_knows_no_feature_are_new_to_it_all_the_same(only):
    completer = BundleCompleter(
        make_processor(), make_model(separator_token_id=401), make_retriever(modalities={"textual": 4, "visual": 12})
    )
    features = make_features(num_items=5, modalities={"textual": 4, "user_item": 6, "visual": 12})
    completer.set_catalog(**new_catalog(features={only: features[only]}, present=None))
    assert len(completer.complete({"partial": ["n0"]})) == 4


class NoTensor:
    """Has a length, and nothing else of a tensor."""

    def __len__(self):
        return 5


NEGATIVE = torch.tensor([-1])
FAILING = {
    "fewer titles": ({"titles": ["a"]}, ValueError),
    "an id twice": ({"item_ids": ["a"] * 5}, ValueError),
    "fewer rows": ({"features": make_features(num_items=4)}, ValueError),
    "another width": ({"features": {"visual": torch.ones(5, 12), "user_item": torch.ones(5, 9)}}, ValueError),
    "not finite": ({"features": {"visual": torch.full((5, 12), torch.nan)}, "present": None}, ValueError),
    "an unknown modality": ({"features": {"acoustic": torch.ones(5, 3)}}, ValueError),
    "no tensor": ({"features": {"user_item": torch.ones(5, 6), "visual": NoTensor()}}, AttributeError),
    "an unknown membership": ({"memberships": {"bundle_item": make_pairs([[0]])}}, ValueError),
    "a group of no item": ({"memberships": {"textual": make_pairs([[5]])}}, ValueError),
    "a negative group": (
        {"memberships": {"textual": make_pairs([[1]])._replace(groups=torch.tensor([-1]))}},
        ValueError,
    ),
}


@pytest.mark.parametrize(("changes", "error"), FAILING.values(), ids=list(FAILING))
def test_a_catalog_that_one_of_them_cannot_take_changes_none(changes, error):
    completer = make_completer()
    completer.ranker.config.items_hash = completer.processor.items_hash
    before = score(completer, OPEN_QUESTION)
    states = [{name: value.clone() for name, value in model.state_dict().items()} for model in completer.models]
    configs = [model.config.to_dict() for model in completer.models]
    with pytest.raises(error):
        completer.set_catalog(**new_catalog(**changes))
    assert [model.config.to_dict() for model in completer.models] == configs
    for model, state in zip(completer.models, states, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert completer.processor.item_ids == tuple(ITEM_IDS)
    assert as_dict(score(completer, OPEN_QUESTION)) == approx(as_dict(before))


def test_models_of_other_items_are_refused():
    processor, ranker, retriever = make_processor(), make_model(), make_retriever()
    retriever.config.items_hash = "0" * 64
    with pytest.raises(ValueError, match=r"does not hold the items the model was saved with .* not 00000000"):
        BundleCompleter(processor, ranker, retriever)
    with pytest.raises(ValueError, match=r"processor has 8 items and the bundle_retriever model 5"):
        BundleCompleter(processor, ranker, make_retriever(make_features(num_items=5), groups={}))
    with pytest.raises(ValueError, match=r"processor has 8 items and the bundle_mllm model 5"):
        BundleCompleter(processor, make_model(features=make_features(num_items=5)))


def test_models_that_read_one_modality_in_two_widths_are_refused():
    retriever = make_retriever(modalities={"visual": 9})
    with pytest.raises(ValueError, match=r"'visual' features of 12 and 9 columns"):
        BundleCompleter(make_processor(), make_model(), retriever)


def test_without_a_combination_both_models_count_as_they_are(completer):
    plain = score(BundleCompleter(completer.processor, completer.ranker, completer.retriever), QUESTION)
    product = plain.scores["ranker"] + plain.scores["retriever"]
    assert_close(plain.answer, product.log_softmax(0))


def test_a_combination_that_was_fitted_for_other_models_is_refused(completer):
    fitted = completer.combination
    with pytest.raises(ValueError, match=r"ranker has other weights than .* fit them again \(bundle-mllm retriever"):
        smaller = make_model(make_backbone(num_hidden_layers=1))
        BundleCompleter(completer.processor, smaller, completer.retriever, fitted)
    retriever = make_retriever()
    retriever.towers.logit_scale.data += 0.1
    with pytest.raises(ValueError, match="The retriever has other weights"):
        BundleCompleter(completer.processor, completer.ranker, retriever, fitted)
    for part in ("ranker", "retriever"):
        with pytest.raises(ValueError, match="fitted for a ranker and a retriever, but there is no"):
            BundleCompleter(completer.processor, **{part: getattr(completer, part)}, combination=fitted)


def test_a_completer_needs_a_model():
    with pytest.raises(ValueError, match="needs a ranker, a retriever or both"):
        BundleCompleter(make_item_processor())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"permutations": 0}, "permutations is 0"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"num_retrieved": 0}, "num_retrieved is 0"),
        ({"max_options": 2}, "max_options is 2"),
        ({"max_options": 27}, "max_options is 27"),
        ({"group_size": 2}, "group_size is 2"),
    ],
)
def test_options_out_of_range_are_an_error_that_names_them(completer, options, message):
    with pytest.raises(ValueError, match=message):
        completer.score([QUESTION], **options)


@pytest.mark.parametrize("part", ["ranker", "retriever"])
@pytest.mark.parametrize("question", [{**QUESTION, "question_id": "q7"}, {**OPEN_QUESTION, "question_id": "q7"}])
def test_scores_that_are_not_finite_are_an_error_that_names_the_question(part, question):
    completer = make_completer(**{"ranker": False, "retriever": False, part: True})
    for parameter in getattr(completer, part).parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"question 'q7' with partial \['i0', 'i1'\].* score nan"):
        completer.score([question])


def test_a_question_is_checked_before_it_is_scored(completer):
    completer.check(OPEN_QUESTION)
    completer.check({"partial": ["i0"], "candidates": ITEM_IDS[1:]})
    with pytest.raises(ValueError, match="'nope' is not among the 8 items"):
        completer.check({"partial": ["nope"]})
    with pytest.raises(ValueError, match=r"have shape \[3\], expected \[12\]"):
        completer.check({"partial": [{"title": "x", "features": {"visual": [1.0] * 3}}]})


def test_groups_that_candidates_share_with_the_partial_bundle_change_their_scores(completer):
    without = make_completer(combination=BundleCombination(WEIGHT, TEMPERATURE))
    rows = without.retriever.catalog_rows()
    without.retriever.set_catalog(rows["features"], rows["present"])
    assert as_dict(score(without, QUESTION)) != approx(as_dict(score(completer, QUESTION)))
