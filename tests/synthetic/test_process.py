"""The posterior of an answer is that of the whole enumerated process."""

import json
import math
from collections import Counter, defaultdict
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
from scipy.stats import hypergeom

from bundle_mllm.data import BundleSplits, ItemCatalog, make_questions
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.synthetic.bayes import bayes_scores
from bundle_mllm.synthetic.catalog import draw_catalog
from bundle_mllm.synthetic.process import GenerativeProcess
from bundle_mllm.synthetic.settings import SyntheticSettings, one_signal
from bundle_mllm.synthetic.write import write_process

pytestmark = pytest.mark.slow


def make_process(num_themes, num_kinds, copies, sizes, purity, distinct=False) -> GenerativeProcess:
    cells = [(theme, kind, copy) for copy in range(copies) for kind in range(num_kinds) for theme in range(num_themes)]
    themes = {"-".join(map(str, cell)): cell[0] for cell in cells}
    kinds = {"-".join(map(str, cell)): cell[1] for cell in cells}
    return GenerativeProcess(themes, kinds, sizes, purity, distinct)


def process_of(settings: SyntheticSettings, folder, signals=None):
    """The process that is read back, the drawn catalog and its bundles as a data set."""
    catalog = draw_catalog(settings)
    write_process(folder, catalog)
    items = ItemCatalog.from_records([{"item_id": item_id} for item_id in catalog.item_ids])
    records = [
        {"bundle_id": f"{split}{number}", "items": [catalog.item_ids[row] for row in rows], "split": split}
        for split, bundles in catalog.bundles.items()
        for number, rows in enumerate(bundles)
    ]
    return GenerativeProcess.load(folder, signals), catalog, items, BundleSplits.from_records(records, items)


def probability_of_bundles(process: GenerativeProcess) -> dict[tuple[str, ...], Fraction]:
    """Sum over themes and sizes, as the process is described: how many items fit, then which ones."""
    purity = Fraction(str(process.theme_purity))
    chances: dict[tuple[str, ...], Fraction] = defaultdict(Fraction)
    for theme in range(process.num_themes):
        for size in process.bundle_sizes:
            by_number = defaultdict(list)
            for bundle in combinations(process.themes, size):
                if not process.distinct_kinds or len({process.kinds[item] for item in bundle}) == size:
                    by_number[sum(process.themes[item] == theme for item in bundle)].append(bundle)
            for number, bundles in by_number.items():
                chance = math.comb(size, number) * purity**number * (1 - purity) ** (size - number)
                for bundle in bundles:
                    share = chance / len(bundles)
                    chances[bundle] += share / process.num_themes / len(process.bundle_sizes)
    return {bundle: chance for bundle, chance in chances.items() if chance}


def test_the_posterior_of_a_tiny_question_is_the_one_worked_by_hand():
    # Two themes of two items; a bundle of two. Of theme 0, both fit with chance 9/16, one with 6/16 (4 such bundles),
    # none with 1/16: the pair a1 a2 has the chance (9 + 1) / 32, the pair a1 b1 has (6 + 6) / (4 * 32).
    themes = {"a1": 0, "a2": 0, "b1": 1, "b2": 1}
    process = GenerativeProcess(themes, dict.fromkeys(themes, 0), (2,), 0.75, distinct_kinds=False)
    assert process.posterior(["a1"], ["b1", "a2"]) == [Fraction(3, 13), Fraction(10, 13)]
    assert process.posterior(["a1"], ["b1", "b2"]) == [Fraction(1, 2)] * 2


@pytest.mark.parametrize(
    ("arguments", "partial", "num_candidates"),
    [
        ((2, 1, 4, (3,), 0.8), "half", 2),
        ((2, 1, 4, (3,), 0.8), "leave_one_out", 4),
        ((3, 1, 3, (3,), 0.7), "half", 3),
        ((2, 2, 2, (3, 4), 0.3), None, 3),
        ((2, 2, 2, (2, 3, 4), 0.9), "half", 3),
        ((2, 3, 1, (2, 3), 1.0, True), "half", 3),
        ((2, 3, 1, (3,), 0.8, True), None, 3),
        ((3, 3, 1, (2, 3), 0.8, True), "half", 4),
        ((2, 4, 1, (3, 4), 0.6, True), "leave_one_out", 3),
    ],
)
def test_the_posterior_is_that_of_all_bundles_all_parts_shown_and_all_wrong_options_enumerated(
    arguments, partial, num_candidates
):
    process = make_process(*arguments)
    joint: dict[tuple, dict[str, Fraction]] = defaultdict(lambda: defaultdict(Fraction))
    total = Fraction(0)
    for bundle, chance in probability_of_bundles(process).items():
        size = len(bundle)
        outside = [item for item in process.themes if item not in bundle]
        sets = list(combinations(outside, num_candidates - 1))
        numbers = {"half": [size // 2], "leave_one_out": [size - 1], None: range(1, size)}[partial]
        for number in numbers:
            for shown in combinations(bundle, number):
                answers = [item for item in bundle if item not in shown]
                parts = len(numbers) * math.comb(size, number) * len(answers) * len(sets)
                for answer in answers:
                    for wrong in sets:
                        joint[shown, tuple(sorted([answer, *wrong]))][answer] += chance / parts
                        total += chance / parts
    assert total == 1
    rng = np.random.default_rng(0)
    for place in rng.permutation(len(joint))[:400]:
        (shown, candidates), chances = list(joint.items())[place]
        posterior = process.posterior(shown, candidates, partial)
        assert posterior == [chances[item] / sum(chances.values()) for item in candidates]


@pytest.mark.parametrize("distinct", [True, False])
def test_bundles_are_drawn_as_often_as_the_process_describes(distinct):
    settings = SyntheticSettings(
        signals={"title": 2, "media": 2}, theme_purity=0.7, bundle_sizes=(5,), distinct_kinds=distinct, cold_share=0
    )
    catalog = draw_catalog(settings)
    patterns = Counter()  # How many items are of the same theme.
    for rows in catalog.bundles["train"]:
        assert len(set(rows)) == 5
        assert not distinct or len(set(catalog.kind[list(rows)])) == 5
        patterns[tuple(sorted(np.bincount(catalog.theme[list(rows)], minlength=4).tolist()))] += 1
    expected: dict[tuple[int, ...], float] = defaultdict(float)
    for fitting in range(6):
        number = 5 - fitting
        for others in product(range(number + 1), repeat=3):
            if sum(others) != number:
                continue
            if distinct:  # Each item's theme is drawn by itself.
                share = math.factorial(number) / math.prod(map(math.factorial, others)) / 3**number
            else:  # Items of other themes are drawn together, without repetition.
                share = math.prod(math.comb(18, other) for other in others) / math.comb(54, number)
            expected[tuple(sorted((fitting, *others)))] += math.comb(5, fitting) * 0.7**fitting * 0.3**number * share
    total = sum(patterns.values())
    assert sum(expected.values()) == pytest.approx(1)
    for pattern, chance in expected.items():
        assert patterns[pattern] / total == pytest.approx(chance, abs=4 * (chance * (1 - chance) / total) ** 0.5)


@pytest.mark.parametrize(("num_candidates", "partial"), [(10, "half"), (20, "half"), (20, "leave_one_out")])
def test_questions_are_answered_as_well_as_promised_and_not_better_by_another_method(
    num_candidates, partial, tmp_path
):
    settings = replace(one_signal("bundle_item"), theme_purity=0.85, num_train=10, num_test=1200, num_users=48)
    process, _, catalog, splits = process_of(settings, tmp_path)
    options = dict(num_candidates=num_candidates, partial=partial, questions_per_bundle=1, seed=0)
    questions = make_questions(splits.test, catalog, splits, **options)
    answers = np.array([question.answer_index for question in questions])
    rng = np.random.default_rng(2)

    def hits(scores: list[list[float]]) -> np.ndarray:
        """Return, per question, the chance that the best candidate is the answer, ties broken at random."""
        table = np.array(scores, dtype=float)
        best = table == table.max(axis=1, keepdims=True)
        return best[np.arange(len(answers)), answers] / best.sum(axis=1)

    def assert_promised(posteriors: np.ndarray, realized: np.ndarray) -> None:
        error = realized.std() / len(realized) ** 0.5
        assert posteriors.max(axis=1).mean() == pytest.approx(realized.mean(), abs=4 * error)

    posteriors = np.array([process.posterior(q.partial, q.candidates, partial) for q in questions], dtype=float)
    best = hits(posteriors)
    assert_promised(posteriors, best)
    chances = posteriors[np.arange(len(answers)), answers]  # calibrated, and not only at the best candidate
    assert chances.mean() == pytest.approx((posteriors**2).sum(axis=1).mean(), abs=0.03)

    less = np.array([process.posterior(q.partial[:1], q.candidates) for q in questions], dtype=float)
    assert_promised(less, hits(less))
    assert less.max(axis=1).mean() < posteriors.max(axis=1).mean() - 0.03

    theme = process.themes
    wrong = GenerativeProcess(theme, process.kinds, (6,), 0.2, distinct_kinds=False)
    others = {
        "the number of items shown that share the theme": [
            [sum(theme[c] == theme[i] for i in q.partial) for c in q.candidates] for q in questions
        ],
        "a wrong purity": [wrong.posterior(q.partial, q.candidates) for q in questions],
        "noise on the logarithm": np.log(posteriors) + rng.normal(0, 3, posteriors.shape),
        "the second best": np.where(posteriors == posteriors.max(axis=1, keepdims=True), 0, posteriors),
    }
    for name, scores in others.items():
        difference = hits(scores) - best
        assert difference.mean() <= 3 * difference.std() / len(difference) ** 0.5, name
    assert hits(others["noise on the logarithm"]).mean() < best.mean()


def closed_form(signals, num_candidates, partial) -> float:
    """The rate of the demo's catalogs: all candidates that agree and are of a new kind are equally likely.

    Their number beside the answer is hypergeometric, so the rate is E[1 / (1 + number)].
    """
    per_kind = 2 * (1 if "title" in signals else 4) * (1 if "media" in signals else 4)
    per_kind *= 1 if "user_item" in signals else 2
    rates = []
    for size in (4, 5, 6):
        shown = size // 2 if partial == "half" else size - 1
        fitting = per_kind * (9 - shown) - (size - shown)  # The bundle's own items are never negatives.
        number = np.arange(num_candidates)
        chance = hypergeom.pmf(number, 576 - size, fitting, num_candidates - 1)
        rates.append((chance / (1 + number)).sum())
    return float(np.mean(rates))


@pytest.mark.parametrize("signals", [("title",), ("title", "media"), ("title", "user_item"), None])
@pytest.mark.parametrize(("num_candidates", "partial"), [(10, "half"), (4, "leave_one_out")])
def test_the_demo_has_the_best_accuracy_of_its_closed_form_whatever_signals_are_known(
    signals, num_candidates, partial, tmp_path
):
    settings = SyntheticSettings(seed=5, num_train=10, num_test=1000, num_users=48)
    process, drawn, catalog, splits = process_of(settings, tmp_path, signals)
    questions = make_questions(
        splits.test, catalog, splits, num_candidates=num_candidates, partial=partial, questions_per_bundle=1, seed=0
    )
    expected, scored = bayes_scores(process, questions, partial)
    known = signals or ("title", "media", "user_item")
    hits = []
    for question, answered in zip(questions, scored, strict=True):
        shown, options = catalog.rows(question.partial), np.array(catalog.rows(question.candidates))
        fits = ~np.isin(drawn.kind[options], drawn.kind[shown])
        for signal in known:
            fits &= drawn.values[signal][options] == drawn.values[signal][shown[0]]
        assert fits.tolist() == [score > -100 for score in answered.scores]
        hits.append(1 / fits.sum())
    assert expected == pytest.approx(np.mean(hits), abs=0.002)
    error = np.std(hits) / len(hits) ** 0.5
    assert expected == pytest.approx(closed_form(known, num_candidates, partial), abs=4 * error)


def test_titles_alone_are_capped_well_below_titles_with_media_and_interactions():
    assert 0.38 <= closed_form(("title",), 10, "half") <= 0.48
    assert closed_form(("title", "media"), 10, "half") >= 0.80
    assert closed_form(("title", "media", "user_item"), 10, "half") >= 0.90


def test_the_process_survives_its_file_and_a_folder_without_one_is_refused(tmp_path):
    settings = replace(one_signal("title"), theme_purity=0.8)
    process, catalog, _, _ = process_of(settings, tmp_path)
    assert list(process.themes.values()) == catalog.theme.tolist()
    assert (process.bundle_sizes, float(process.theme_purity), process.distinct_kinds) == ((6,), 0.8, False)
    (tmp_path / "synthetic.json").write_text(json.dumps({"settings": {}}))
    with pytest.raises(BundleMLLMError, match=r"does not describe how bundles were drawn.*bundle-mllm synthetic"):
        GenerativeProcess.load(tmp_path)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("settings", "signals", "title"), 24.0, r"signals\['title'\] must be of type int, not 24.0"),
        (("settings", "signals", "title"), 0, "cannot have 0 for themes"),
        (("settings", "theme_purity"), 0, "theme purity is 0"),
        (("settings", "bundle_sizes"), [6, 9999], "cannot have 9999 for items of a bundle"),
        (("kinds", "i0"), 9999, "not all themes have 4 items of each kind"),
        (("kinds", "i0"), 2.5, "not all themes have 4 items of each kind"),
        (("kinds",), [], "not all themes have 4 items of each kind"),
        (("kinds",), 3, "TypeError"),
        (("settings",), [], "AttributeError"),
        (("levels", "title", "i0"), 23.5, "not all themes have 4 items of each kind"),
        (("levels", "title"), {}, "KeyError"),
    ],
)
def test_a_process_with_values_that_no_catalog_has_is_refused(tmp_path, where, value, message):
    process_of(one_signal("title"), tmp_path)
    record = part = json.loads((tmp_path / "synthetic.json").read_text())
    first = next(iter(record["kinds"]))
    *parents, last = (first if name == "i0" else name for name in where)
    for name in parents:
        part = part[name]
    part[last] = value
    (tmp_path / "synthetic.json").write_text(json.dumps(record))
    with pytest.raises(BundleMLLMError, match=message):
        GenerativeProcess.load(tmp_path)


def test_themes_that_no_known_signal_tells_apart_are_merged_with_the_purity_that_bundles_then_have(tmp_path):
    settings = SyntheticSettings(theme_purity=0.6, cold_share=0)
    process, catalog, _, _ = process_of(settings, tmp_path, ("title",))
    assert process.num_themes == 4
    shares = []
    for rows in map(list, catalog.bundles["train"]):
        shares.append(np.bincount(catalog.values["title"][rows], minlength=4).max() / len(rows))
    assert float(process.theme_purity) == pytest.approx(0.6 + 0.4 * 7 / 31)
    assert np.mean(shares) == pytest.approx(float(process.theme_purity), abs=0.04)


def test_questions_that_no_bundle_allows_are_refused():
    with pytest.raises(BundleMLLMError, match=r"No bundle of \(3,\) items can contain the 3 items"):
        make_process(2, 1, 4, (3,), 0.9).posterior(["0-0-0", "0-0-1", "0-0-2"], ["0-0-3"])
    with pytest.raises(BundleMLLMError, match="No bundle"):
        make_process(2, 3, 2, (3,), 0.9, True).posterior(["0-0-0", "0-0-1"], ["0-1-0"])
