"""How many items the ranker scores: as many as an answer has time for."""

import pytest
from tiny_models import make_completer

from bundle_mllm.training import answer_time


@pytest.mark.parametrize(("seconds_per_item", "expected"), [(0.01, 26), (0.05, 20), (0.06, 15), (0.4, 2), (9.0, 2)])
def test_the_largest_number_is_chosen_with_which_an_answer_takes_a_second(monkeypatch, seconds_per_item, expected):
    completer = make_completer()
    before = completer.combination
    monkeypatch.setattr(answer_time, "_seconds", lambda which, _: seconds_per_item * which.num_ranked)
    assert answer_time.measure_num_ranked(completer, ["i0"]) == expected
    assert completer.combination is before


def test_a_fast_model_ranks_as_many_as_it_was_trained_on():
    completer = make_completer()
    completer.processor.max_options = 7
    assert answer_time.measure_num_ranked(completer, ["i0", "i1"], seconds=100.0) == 7
