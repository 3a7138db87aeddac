"""Weight and temperature of a combination are the likeliest ones."""

import numpy as np
import pytest

from bundle_mllm.training.combine import fit_combination


def log_softmax(rows):
    return rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))


def draw(logits, rng):
    """Draw an answer of each question from the distribution that logits give."""
    return [int(rng.choice(len(row), p=np.exp(log_softmax(row)))) for row in logits]


def likelihood(ranker, retriever, answers, weight, temperature):
    joined = log_softmax((weight * log_softmax(ranker) + log_softmax(retriever)) / temperature)
    return joined[np.arange(len(answers)), answers].mean()


def test_no_weight_and_temperature_of_a_grid_are_likelier():
    rng = np.random.default_rng(0)
    ranker, retriever = rng.normal(size=(2, 400, 5))
    answers = draw(0.6 * ranker + 1.5 * retriever, rng)
    fitted = fit_combination(ranker.tolist(), retriever.tolist(), answers)
    best = likelihood(ranker, retriever, answers, fitted.combination.ranker_weight, fitted.combination.temperature)
    assert fitted.log_likelihood == pytest.approx(best)
    for weight in np.linspace(0, 3, 13):
        for temperature in np.geomspace(0.2, 5, 13):
            assert likelihood(ranker, retriever, answers, weight, temperature) <= best + 1e-6
    assert fitted.combination.ranker_weight == pytest.approx(0.6 / 1.5, abs=0.15)
    assert fitted.combination.temperature == pytest.approx(1 / 1.5, abs=0.15)
    assert fitted.num_questions == 400


def test_the_parts_alone_are_reported_as_they_are():
    rng = np.random.default_rng(1)
    ranker, retriever = rng.normal(size=(2, 50, 4))
    answers = draw(retriever, rng)
    fitted = fit_combination(ranker.tolist(), retriever.tolist(), answers)
    alone = [log_softmax(part)[np.arange(50), answers].mean() for part in (ranker, retriever)]
    assert [fitted.log_likelihood_of_ranker, fitted.log_likelihood_of_retriever] == pytest.approx(alone)
    assert fitted.log_likelihood >= fitted.log_likelihood_of_retriever


def test_a_ranker_that_guesses_gets_next_to_no_weight_and_overconfidence_is_cooled():
    rng = np.random.default_rng(2)
    retriever = rng.normal(size=(2_000, 5))
    answers = draw(retriever, rng)
    fitted = fit_combination(rng.normal(size=(2_000, 5)).tolist(), (4 * retriever).tolist(), answers)
    assert fitted.combination.ranker_weight < 0.4  # of 4: its share beside the retriever is below a tenth
    assert fitted.combination.temperature == pytest.approx(4, rel=0.15)


def test_a_ranker_that_misleads_gets_none():
    rng = np.random.default_rng(3)
    retriever = rng.normal(size=(300, 5))
    fitted = fit_combination((-retriever).tolist(), rng.normal(size=(300, 5)).tolist(), draw(retriever, rng))
    assert fitted.combination.ranker_weight == 0


def test_lists_of_different_lengths_are_joined():
    ranker, retriever = [[0.0, 2.0], [1.0, 0.0, 0.0]], [[0.0, 1.0], [0.0, 1.0, 0.0]]
    fitted = fit_combination(ranker, retriever, [1, 0])
    assert 0 < fitted.combination.ranker_weight <= 10 and 0.1 - 1e-9 <= fitted.combination.temperature <= 10
