"""The posterior of an answer is that of the whole enumerated process, and what is drawn follows the process."""

import json
from collections import defaultdict
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest

from bundle_mllm.data import BundleSplits, ItemCatalog, make_questions
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.synthetic.planted import PlantedBundles


def planted(num_themes: int, theme_size: int, bundle_size: int, fidelity: float) -> PlantedBundles:
    themes = {f"{theme}-{item}": theme for item in range(theme_size) for theme in range(num_themes)}
    return PlantedBundles(themes, bundle_size, fidelity)


def probability_of_bundles(process: PlantedBundles) -> dict[tuple[str, ...], Fraction]:
    """Sum over themes, as the process is described: how many items fit, then which ones."""
    fidelity, size = Fraction(str(process.fidelity)), process.bundle_size
    chances: dict[tuple[str, ...], Fraction] = defaultdict(Fraction)
    for theme in range(process.num_themes):
        by_number = defaultdict(list)
        for bundle in combinations(process.themes, size):
            by_number[sum(process.themes[item] == theme for item in bundle)].append(bundle)
        for number, bundles in by_number.items():
            for bundle in bundles:
                patterns = len(list(combinations(range(size), number)))
                chance = patterns * fidelity**number * (1 - fidelity) ** (size - number) / process.num_themes
                chances[bundle] += chance / len(bundles)
    return chances


def test_the_posterior_of_a_tiny_question_is_the_one_worked_by_hand():
    # Two themes of two items; a bundle of two. Of theme 0, both fit with chance 9/16, one with 6/16 (4 such bundles),
    # none with 1/16: the pair a1 a2 has the chance (9 + 1) / 32, the pair a1 b1 has (6 + 6) / (4 * 32).
    process = PlantedBundles({"a1": 0, "a2": 0, "b1": 1, "b2": 1}, 2, 0.75)
    assert process.posterior(["a1"], ["b1", "a2"]) == [Fraction(3, 13), Fraction(10, 13)]
    assert process.posterior(["a1"], ["b1", "b2"]) == [Fraction(1, 2)] * 2


@pytest.mark.parametrize(
    ("num_themes", "theme_size", "bundle_size", "fidelity", "num_shown", "num_candidates"),
    [(2, 4, 3, 0.8, 1, 2), (2, 4, 3, 0.8, 2, 4), (3, 3, 3, 0.7, 1, 3), (2, 4, 4, 0.9, 1, 4), (2, 4, 4, 0.3, 2, 3)],
)
def test_the_posterior_is_that_of_all_bundles_all_parts_shown_and_all_wrong_options_enumerated(
    num_themes, theme_size, bundle_size, fidelity, num_shown, num_candidates
):
    process = planted(num_themes, theme_size, bundle_size, fidelity)
    joint: dict[tuple, dict[str, Fraction]] = defaultdict(lambda: defaultdict(Fraction))
    total = Fraction(0)
    for bundle, chance in probability_of_bundles(process).items():
        outside = [item for item in process.themes if item not in bundle]
        sets = list(combinations(outside, num_candidates - 1))
        for shown in combinations(bundle, num_shown):
            answers = [item for item in bundle if item not in shown]
            for answer in answers:
                for wrong in sets:
                    parts = len(list(combinations(bundle, num_shown))) * len(answers) * len(sets)
                    joint[shown, tuple(sorted([answer, *wrong]))][answer] += chance / parts
                    total += chance / parts
    assert total == 1
    for (shown, candidates), chances in joint.items():
        posterior = process.posterior(shown, candidates)
        assert sum(posterior) == 1
        assert posterior == [chances[item] / sum(chances.values()) for item in candidates]


def test_bundles_are_drawn_as_often_as_the_process_says():
    process = planted(2, 3, 2, 0.7)
    drawn = process.draw(4_000, np.random.default_rng(0))
    for bundle, chance in probability_of_bundles(process).items():
        share = sum(set(bundle) == set(other) for other in drawn) / len(drawn)
        assert share == pytest.approx(float(chance), abs=4 * float(chance * (1 - chance) / len(drawn)) ** 0.5)
    first = [bundle[0] for bundle in drawn if set(bundle) == set(drawn[0])]
    assert 0.4 < sum(item == drawn[0][0] for item in first) / len(first) < 0.6  # the order of a bundle is random


@pytest.mark.parametrize(("num_candidates", "partial"), [(10, "half"), (20, "half"), (20, "leave_one_out")])
def test_questions_are_answered_as_well_as_promised_and_not_better_by_anyone(num_candidates, partial):
    process = planted(12, 20, 6, 0.85)
    catalog = ItemCatalog.from_records([{"item_id": item_id} for item_id in process.themes])
    drawn = process.draw(1200, np.random.default_rng(1))
    records = [{"bundle_id": str(i), "items": list(b), "split": "test"} for i, b in enumerate(drawn)]
    splits = BundleSplits.from_records(records, catalog)
    asked = dict(num_candidates=num_candidates, partial=partial, questions_per_bundle=1, seed=0)
    questions = make_questions(splits.test, catalog, splits, **asked)
    answers = np.array([question.answer_index for question in questions])
    rng = np.random.default_rng(2)

    def hits(scores: list[list[float]]) -> np.ndarray:
        """Return, per question, the chance that the best candidate is the answer, ties broken at random."""
        table = np.array(scores, dtype=float)
        best = table == table.max(axis=1, keepdims=True)
        return best[np.arange(len(answers)), answers] / best.sum(axis=1)

    def promised(posteriors: np.ndarray, realized: np.ndarray) -> None:
        error = realized.std() / len(realized) ** 0.5
        assert posteriors.max(axis=1).mean() == pytest.approx(realized.mean(), abs=4 * error)

    posteriors = np.array([process.posterior(q.partial, q.candidates) for q in questions], dtype=float)
    best = hits(posteriors)
    promised(posteriors, best)
    chances = posteriors[np.arange(len(answers)), answers]  # calibrated, and not only at the best candidate
    assert chances.mean() == pytest.approx((posteriors**2).sum(axis=1).mean(), abs=0.03)

    less = np.array([process.posterior(q.partial[:1], q.candidates) for q in questions], dtype=float)
    promised(less, hits(less))
    assert less.max(axis=1).mean() < posteriors.max(axis=1).mean() - 0.03

    theme = process.themes
    others = {
        "the number of items shown that share the theme": [
            [sum(theme[c] == theme[i] for i in q.partial) for c in q.candidates] for q in questions
        ],
        "a wrong fidelity": [
            planted_with.posterior(q.partial, q.candidates)
            for planted_with in [PlantedBundles(theme, 6, 0.2)]
            for q in questions
        ],
        "noise on the logarithm": np.log(posteriors) + rng.normal(0, 3, posteriors.shape),
        "the second best": np.where(posteriors == posteriors.max(axis=1, keepdims=True), 0, posteriors),
    }
    for name, scores in others.items():
        difference = hits(scores) - best
        assert difference.mean() <= 3 * difference.std() / len(difference) ** 0.5, name
    assert hits(others["noise on the logarithm"]).mean() < best.mean()


def test_what_is_planted_survives_the_file(tmp_path):
    process = planted(3, 4, 3, 0.9)
    (tmp_path / "studio.json").write_text(json.dumps({"planted": process.to_record()}))
    loaded = PlantedBundles.load(tmp_path)
    assert (dict(loaded.themes), loaded.bundle_size, loaded.fidelity) == (dict(process.themes), 3, 0.9)
    (tmp_path / "studio.json").write_text("{}")
    with pytest.raises(BundleMLLMError, match=r"does not say how bundles were drawn.*bundle-mllm studio"):
        PlantedBundles.load(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, 4, 3, 1.0), "fidelity is 1.0"),
        ((1, 4, 3, 0.9), "two or more themes"),
        ((2, 4, 5, 0.9), "no more than a theme has"),
        ((2, 4, 1, 0.9), "choose 2 or more"),
    ],
)
def test_a_process_without_a_known_posterior_is_refused(arguments, message):
    with pytest.raises(BundleMLLMError, match=message):
        planted(*arguments)


def test_themes_of_unequal_size_are_refused():
    with pytest.raises(BundleMLLMError, match="give each as many items"):
        PlantedBundles({"a": 0, "b": 0, "c": 1}, 2, 0.9)


@pytest.mark.parametrize(
    ("shown", "candidates", "message"),
    [
        (["x"], ["0-0"], "'x' is no item"),
        (["0-0"], ["0-0", "0-1"], "nothing twice"),
        ([], ["0-0"], "0 items are shown"),
        (["0-0", "0-1", "0-2"], ["0-3"], "show 1 to 2"),
    ],
)
def test_improper_questions_are_refused(shown, candidates, message):
    with pytest.raises(BundleMLLMError, match=message):
        planted(2, 4, 3, 0.9).posterior(shown, candidates)
