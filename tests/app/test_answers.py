import math
from dataclasses import replace

import pytest
from PIL import Image

from bundle_mllm.app.answers import Answer, Result, compare
from bundle_mllm.app.state import OwnItem, State, add_own, set_rules
from bundle_mllm.completion.complete import RuledCompleter
from bundle_mllm.modeling.conformal_bundle_mllm import BundleCalibration


def test_answers_are_those_of_the_completer(both):
    result = both.complete(both.items, State(bundle=(0, 1), top_k=5))
    ids = [both.items.item_ids[0], both.items.item_ids[1]]
    [expected] = RuledCompleter(both.completer).complete([{"partial": ids}], top_k=5, explain=True)
    assert [both.items.item_ids[a.number] for a in result.answers] == [item["item_id"] for item in expected.items]
    assert [a.place for a in result.answers] == [1, 2, 3, 4, 5]
    for answer, item in zip(result.answers, expected.items, strict=True):
        assert answer.score == item["score"]
        assert answer.contributions == item["explanation"]["contributions"]
        assert set(answer.contributions) >= {"title", "picture", "bundles", "LLM"}
        assert set(answer.alone) == {"ranker", "retriever"}


def test_an_empty_bundle_has_no_answers(both):
    assert both.complete(both.items, State()) == Result()


def test_rules_hold_and_what_they_cost_is_noted(alone):
    state = set_rules(State(bundle=(0,)), 10, None, ["bag"], "price < 30")
    result = alone.complete(alone.items, state)
    assert {alone.items.category(answer.number) for answer in result.answers} == {"bag"}
    assert "answers instead of 10" in result.notes[0]


def test_rules_that_do_not_fit_the_catalog_are_an_error_in_words(alone):
    result = alone.complete(alone.items, set_rules(State(bundle=(0,)), 10, None, [], "prize < 30"))
    assert "no column 'prize'" in result.error
    assert not result.answers


def test_where_nothing_fits_there_are_no_answers_if_the_model_can_tell(both, monkeypatch):
    state = set_rules(State(bundle=(0, 1)), 10, 0.9, [], "")
    uncalibrated = both.complete(both.items, state)
    assert len(uncalibrated.answers) == 10 and not uncalibrated.nothing_fits
    assert "was not calibrated" in uncalibrated.notes[0]
    for least, number in ((1e6, 0), (-1e6, 10)):  # of known answers, far above and far below all that can be scored
        calibration = BundleCalibration(4, {part: [least] * 20 for part in both.completer.parts})
        monkeypatch.setattr(
            both.completer, "combination", replace(both.completer.combination, calibration=calibration)
        )
        monkeypatch.setattr(both, "is_calibrated", True)
        result = both.complete(both.items, state)
        assert result.error is None
        assert (len(result.answers), result.nothing_fits) == (number, number == 0)


def test_an_own_item_ranks_where_its_score_puts_it(alone, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    state = add_own(State(bundle=(0, 1), top_k=4), OwnItem("red dress", None, str(tmp_path / "red.png")))
    result = alone.complete(alone.items, state)
    [own] = [answer for answer in result.answers if answer.number < 0]
    entry = {"title": "red dress", "image": str(tmp_path / "red.png")}
    [completion] = alone.completer.score(
        [{"partial": alone.items.item_ids[:2], "candidates": [entry, *alone.items.item_ids[2:]]}]
    )
    scores = completion.answer.numpy()
    assert own.of == 23
    assert own.place == 1 + (scores[1:] > scores[0]).sum()
    assert own.score == pytest.approx(math.exp(scores[0]))
    places = [answer.place for answer in result.answers]
    assert places == sorted(places) and len(places) == 5


def test_an_own_item_has_contributions_of_both_models(both):
    result = both.complete(both.items, add_own(State(bundle=(0, 1)), OwnItem("red dress", "bag")))
    [own] = [answer for answer in result.answers if answer.number < 0]
    assert {"title", "LLM"} <= set(own.contributions)
    assert set(own.alone) == {"ranker", "retriever"}


def test_an_own_item_is_ranked_among_what_the_filters_allow(alone):
    state = set_rules(add_own(State(bundle=(0, 1)), OwnItem("red dress")), 10, None, ["bag"], "")
    assert [answer.of for answer in alone.complete(alone.items, state).answers if answer.number < 0] == [5]


def test_an_own_item_can_be_part_of_the_bundle(both):
    state = add_own(State(), OwnItem("red dress"))
    result = both.complete(both.items, State(bundle=(0, -1), own=state.own))
    assert result.error is None
    assert len(result.answers) == 10


def test_an_own_picture_that_cannot_be_read_is_an_error_in_words(both, tmp_path):
    (tmp_path / "no.png").write_bytes(b"GIF")
    state = add_own(State(bundle=(0,)), OwnItem("red dress", None, str(tmp_path / "no.png")))
    assert "not a picture" in both.complete(both.items, state).error


def test_a_model_of_other_items_says_which_are_missing(both):
    class Fewer:
        item_ids, row_of = ["unknown", both.items.item_ids[1]], {}

    result = both.complete(Fewer, State(bundle=(0, 1)))
    assert result.notes[0].startswith("1 of the 2 items of the bundle")


def test_two_models_are_compared_by_the_places_of_their_answers():
    first = Result((Answer(3, 1, 0.5), Answer(4, 2, 0.2)))
    second = Result((Answer(4, 1, 0.6), Answer(9, 2, 0.1)))
    found = compare([first, second])
    assert [answer.elsewhere for answer in found[0].answers] == [0, 1]
    assert [answer.elsewhere for answer in found[1].answers] == [2, 0]
