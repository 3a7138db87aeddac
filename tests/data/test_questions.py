import json
import os
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from bundle_mllm.data import (
    Bundle,
    BundleSplits,
    ItemCatalog,
    Question,
    load_questions,
    make_questions,
    sample_training_questions,
    save_questions,
    write_records,
)
from bundle_mllm.data.questions import spread
from bundle_mllm.errors import BundleMLLMError

SAMPLING = {"num_questions": 3000, "num_candidates": (2, 10), "hard_fraction": 0.5, "seed": 0}
RECORD = {
    "question_id": "b-0",
    "bundle_id": "b",
    "partial": ["i0", "i1"],
    "candidates": ["i5", "i6", "i7"],
    "answer_index": 1,
}


def assert_proper(question, bundle):
    """Assert what every question promises: the answer is the only candidate of the bundle."""
    assert question.bundle_id == bundle.bundle_id
    assert len(set(question.candidates)) == len(question.candidates)
    assert set(question.candidates) & set(bundle.items) == {question.answer}
    assert 1 <= len(set(question.partial)) == len(question.partial)
    assert set(question.partial) <= set(bundle.items) - {question.answer}


@pytest.fixture
def by_id(splits):
    return {bundle.bundle_id: bundle for bundle in splits}


def test_bundles_are_spread_over_a_sorted_file():
    bundles = [Bundle(f"b{number}", ("x", "y") if number % 5 else ("x",), "test") for number in range(50)]
    usable = [bundle for bundle in bundles if len(bundle.items) == 2]
    for number in (1, 7, 39, 40, 41):
        chosen = spread(bundles, number)
        assert len(chosen) == min(number, 40) and chosen[0] is usable[0]
        gaps = np.diff([usable.index(bundle) for bundle in chosen])
        assert len(set(gaps)) <= 2 and (len(gaps) == 0 or gaps.max() - gaps.min() <= 1)
    assert spread(bundles, 0) == spread([], 3) == []


@pytest.mark.parametrize("negatives", ["uniform", "hard"])
@pytest.mark.parametrize("partial", ["half", "leave_one_out"])
@pytest.mark.parametrize("num_candidates", [2, 10, 26, 100])
def test_made_questions_are_proper(catalog, splits, by_id, negatives, partial, num_candidates):
    options = {"negatives": negatives, "partial": partial, "num_candidates": num_candidates}
    questions = make_questions(tuple(splits), catalog, splits, **options, questions_per_bundle=3, seed=0)
    assert {q.bundle_id for q in questions} == {b.bundle_id for b in splits if len(b.items) >= 2}
    assert len({q.question_id for q in questions}) == len(questions)
    for question in questions:
        assert_proper(question, by_id[question.bundle_id])
        assert len(question.candidates) == num_candidates


@pytest.mark.parametrize(
    ("size", "partial", "shown", "number"),
    [(2, "half", 1, 1), (3, "half", 1, 2), (7, "half", 3, 4), (40, "half", 10, 9), (2, "leave_one_out", 1, 2),
     (7, "leave_one_out", 6, 7), (40, "leave_one_out", 10, 9)],
)  # fmt: skip
def test_the_partial_bundle_has_the_size_of_its_protocol(catalog, size, partial, shown, number):
    bundle = Bundle("b", catalog.item_ids[:size], "test")
    questions = make_questions([bundle], catalog, BundleSplits(), partial=partial, questions_per_bundle=9, seed=0)
    assert [len(question.partial) for question in questions] == [shown] * number
    assert len({question.answer for question in questions}) == number
    assert [question.question_id for question in questions] == [f"b-{k}" for k in range(number)]


def test_half_shows_the_same_items_in_every_question_of_a_bundle(catalog):
    bundle = Bundle("b", catalog.item_ids[:9], "test")
    questions = make_questions([bundle], catalog, BundleSplits(), questions_per_bundle=5, seed=0)
    assert len({question.partial for question in questions}) == 1
    assert {q.answer for q in questions} | set(questions[0].partial) == set(bundle.items)


def test_bundles_of_one_item_have_no_questions(catalog):
    assert make_questions([Bundle("b", ("i1",), "test")], catalog, BundleSplits(), seed=0) == []


def test_a_question_depends_on_seed_bundle_and_number_alone(catalog, splits):
    options = {"negatives": "hard", "seed": 0}
    all_of_them = make_questions(splits.train, catalog, splits, questions_per_bundle=3, **options)
    some = make_questions(splits.train[::-1][:9], catalog, splits, questions_per_bundle=1, **options)
    assert set(map(repr, some)) < set(map(repr, all_of_them))
    assert make_questions(splits.train, catalog, splits, negatives="hard", seed=1) != all_of_them


def test_made_questions_are_the_same_in_every_process(tmp_path):
    """Python salts `hash()` per process; no question may depend on it."""
    code = (
        "import sys\n"
        "from bundle_mllm.data import BundleSplits, ItemCatalog\n"
        "from bundle_mllm.data import make_questions, sample_training_questions, save_questions\n"
        "catalog = ItemCatalog.from_records({'item_id': n} for n in range(99))\n"
        "splits = BundleSplits.from_records(({'bundle_id': n, 'items': [n, n + 1, n + 5], 'split': 'train'} "
        "for n in range(20)), catalog)\n"
        "made = make_questions(splits.train, catalog, splits, negatives='hard', seed=3)\n"
        "made += sample_training_questions(splits.train, catalog, num_questions=50, num_candidates=(2, 9), "
        "hard_fraction=.5, seed=3)\n"
        "save_questions(sys.argv[1], made)"
    )
    for salt in ("1", "2"):
        path = [entry for entry in sys.path if entry]
        environment = {**os.environ, "PYTHONHASHSEED": salt, "PYTHONPATH": os.pathsep.join(path)}
        subprocess.run([sys.executable, "-c", code, tmp_path / f"{salt}.jsonl"], check=True, env=environment)
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()


def test_the_answer_is_at_every_position_equally_often(catalog, splits):
    made = [
        question
        for seed in range(20)
        for question in make_questions(splits.train, catalog, splits, num_candidates=5, seed=seed)
    ]
    sampled = sample_training_questions(splits.train, catalog, **{**SAMPLING, "num_candidates": (5, 5)})
    for questions in (made, sampled):
        counts = Counter(question.answer_index for question in questions)
        expected = len(questions) / 5
        assert all(abs(counts[position] - expected) < 4 * expected**0.5 for position in range(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_candidates": 1}, "cannot have 1 candidates, since there would be nothing to choose: give 2 or more"),
        ({"num_candidates": 199}, "which leaves .* for the 198 wrong options"),
        ({"negatives": "popular"}, "negatives is 'popular': choose one of 'uniform', 'hard'"),
        ({"partial": "all"}, "partial is 'all': choose one of 'half', 'leave_one_out'"),
        ({"questions_per_bundle": 0}, "questions_per_bundle is 0"),
        ({"max_partial": 0}, "max_partial is 0"),
    ],
)
def test_options_out_of_range_are_refused(catalog, splits, options, message):
    with pytest.raises(BundleMLLMError, match=message):
        make_questions(splits.train, catalog, splits, **options, seed=0)


def test_a_catalog_too_small_for_the_options_is_refused():
    catalog = ItemCatalog.from_records({"item_id": n} for n in range(12))
    bundles = [Bundle("b", ("0", "1", "2", "3"), "train")]
    assert len(make_questions(bundles, catalog, BundleSplits(), num_candidates=9, seed=0)) == 2
    message = "'b' has 4 of the catalog's 12 items, which leaves 8 for the 9 wrong options of 10 candidates: give 9"
    with pytest.raises(BundleMLLMError, match=message):
        make_questions(bundles, catalog, BundleSplits(), num_candidates=10, seed=0)
    with pytest.raises(BundleMLLMError, match=message):
        sample_training_questions(bundles, catalog, **SAMPLING)


def test_a_bundle_of_another_catalog_is_refused(catalog):
    with pytest.raises(BundleMLLMError, match="Bundle 'b': The catalog has no item 'x'"):
        make_questions([Bundle("b", ("x", "y"), "test")], catalog, BundleSplits(), seed=0)


def test_sampled_questions_are_proper(catalog, splits, by_id):
    questions = sample_training_questions(splits.train, catalog, **SAMPLING)
    assert len(questions) == 3000
    assert len({question.question_id for question in questions}) == 3000
    for question in questions:
        assert_proper(question, by_id[question.bundle_id])


def test_sampling_varies_sizes_over_their_whole_ranges(catalog, splits, by_id):
    questions = sample_training_questions(splits.train, catalog, **SAMPLING, max_partial=4)
    assert {len(question.candidates) for question in questions} == set(range(2, 11))
    for bundle in splits.train:
        sizes = {len(question.partial) for question in questions if question.bundle_id == bundle.bundle_id}
        assert sizes == set(range(1, min(len(bundle.items) - 1, 4) + 1))


def test_every_pass_has_every_bundle_once_in_a_new_order(catalog, splits):
    askable = {bundle.bundle_id for bundle in splits.train if len(bundle.items) >= 2}
    sampled = sample_training_questions(splits.train, catalog, **{**SAMPLING, "num_questions": 2 * len(askable)})
    order = [question.bundle_id for question in sampled]
    first, second = order[: len(askable)], order[len(askable) :]
    assert set(first) == set(second) == askable
    assert first != second


def test_sampling_follows_its_seed(catalog, splits):
    sampled = sample_training_questions(splits.train, catalog, **SAMPLING)
    assert sample_training_questions(splits.train, catalog, **SAMPLING) == sampled
    assert sample_training_questions(splits.train, catalog, **{**SAMPLING, "seed": 1}) != sampled
    longer = sample_training_questions(splits.train, catalog, **{**SAMPLING, "num_questions": 3100})
    assert longer[:3000] == sampled


@pytest.mark.parametrize("hard_fraction", [0.0, 0.3, 1.0])
def test_the_negatives_of_a_question_are_all_hard_or_all_uniform(catalog, splits, hard_fraction):
    options = {**SAMPLING, "num_candidates": (10, 10), "hard_fraction": hard_fraction}
    category = dict(zip(catalog.item_ids, catalog.categories, strict=True))
    questions = sample_training_questions(splits.train, catalog, **options)
    same = [len({category[item_id] for item_id in question.candidates}) == 1 for question in questions]
    assert abs(sum(same) / len(same) - hard_fraction) < 0.04


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_candidates": (1, 5)}, "cannot have 1 candidates"),
        ({"num_candidates": (5, 27)}, "A training question cannot have 27 candidates, .*: choose 2 to 26"),
        ({"num_candidates": (6, 5)}, r"6 to 5, an empty range: write \(5, 6\)"),
        ({"hard_fraction": 1.5}, "hard_fraction is 1.5, not a probability"),
        ({"num_questions": 0}, "num_questions is 0"),
        ({"max_partial": 0}, "max_partial is 0"),
    ],
)
def test_sampling_options_out_of_range_are_refused(catalog, splits, options, message):
    with pytest.raises(BundleMLLMError, match=message):
        sample_training_questions(splits.train, catalog, **{**SAMPLING, **options})


def test_with_folds_hard_negatives_are_matched_on_frequencies_outside_the_fold():
    """Each bundle's items are in no other bundle: outside of its fold they are as rare as items that no bundle has."""
    catalog = ItemCatalog.from_records({"item_id": n} for n in range(300))
    bundles = tuple(Bundle(f"b{n}", tuple(str(4 * n + k) for k in range(4)), "train") for n in range(50))
    options = {"num_questions": 300, "num_candidates": (10, 10), "hard_fraction": 1.0, "seed": 0}

    def share_in_no_bundle(**folds):
        questions = sample_training_questions(bundles, catalog, **options, **folds)
        wrong = [int(item) for q in questions for item in q.candidates if item != q.answer]
        return sum(item >= 200 for item in wrong) / len(wrong)

    assert share_in_no_bundle() < 0.15
    assert share_in_no_bundle(fold_of_bundle={f"b{n}": n % 2 for n in range(50)}) > 0.35


def test_sampling_without_a_bundle_to_ask_about_is_refused(catalog):
    with pytest.raises(BundleMLLMError, match="None of the 1 training bundles has two items"):
        sample_training_questions([Bundle("b", ("i1",), "train")], catalog, **SAMPLING)


def test_sampling_is_fast_for_large_catalogs_and_bundles():
    """200,000 questions in a minute, asserted on a tenth and with large bundles."""
    catalog = ItemCatalog.from_records({"item_id": n} for n in range(30_000))
    bundles = [Bundle(str(n), catalog.item_ids[n * 150 : n * 150 + 150], "train") for n in range(200)]
    start = time.process_time()
    sample_training_questions(bundles, catalog, **{**SAMPLING, "num_questions": 20_000})
    assert time.process_time() - start < 6


def test_questions_read_back_as_they_were_saved(catalog, splits, tmp_path):
    questions = make_questions(splits.validation, catalog, splits, seed=0)
    save_questions(tmp_path / "q.jsonl", questions)
    assert load_questions(tmp_path / "q.jsonl", catalog) == questions


def test_the_same_questions_are_saved_as_the_same_bytes(catalog, splits, tmp_path):
    for name in ("a", "b"):
        save_questions(tmp_path / f"{name}.jsonl", make_questions(splits.validation, catalog, splits, seed=0))
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    fields = ["question_id", "bundle_id", "partial", "candidates", "answer_index"]
    assert list(json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])) == fields


@pytest.mark.parametrize("extra", [{}, {"answer": "i6"}, {"answer": None}, {"note": "anything"}])
def test_a_question_may_name_its_answer(catalog, tmp_path, extra):
    write_records(tmp_path / "q.jsonl", [{**RECORD, **extra}])
    (question,) = load_questions(tmp_path / "q.jsonl", catalog)
    assert question == Question("b-0", "b", ("i0", "i1"), ("i5", "i6", "i7"), 1)
    assert question.answer == "i6"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partial": ["i0", "x"]}, "`partial`: The catalog has no item 'x'"),
        ({"candidates": ["i5", "x", "y"]}, "`candidates`: The catalog has no item 'x', 'y'"),
        ({"answer_index": 3}, "answer_index 3 for 3 candidates: use 0 to 2"),
        ({"answer_index": -1}, "answer_index -1 for 3 candidates"),
        ({"answer_index": "-1"}, "answer_index '-1' for 3 candidates"),
        ({"answer_index": True}, "answer_index True for 3 candidates"),
        ({"answer": "i9"}, "answer 'i9', which is not among its candidates"),
        ({"answer": "i5"}, "answer 'i5', but answer_index 1 is 'i6': set answer_index to 0"),
        ({"candidates": ["i5", "i6", "i5"]}, "'i5' more than once in `candidates`"),
        ({"partial": ["i0", "i0"]}, "'i0' more than once in `partial`"),
        ({"partial": ["i0", "i6"]}, "offers 'i6', which is in `partial` already"),
        ({"candidates": ["i6"], "answer_index": 0}, "cannot have 1 candidates"),
        ({"partial": []}, "shows no item"),
        ({"candidates": "i5 i6"}, "as `candidates`: write a list of ids"),
        ({"question_id": ""}, "has the id ''"),
    ],
)
def test_an_improper_question_is_refused_by_row(catalog, tmp_path, changes, message):
    write_records(tmp_path / "q.jsonl", [{**RECORD, "question_id": "fine"}, {**RECORD, **changes}])
    with pytest.raises(BundleMLLMError, match=rf"q\.jsonl row 2.*{message}"):
        load_questions(tmp_path / "q.jsonl", catalog)


@pytest.mark.parametrize("name", list(RECORD))
def test_a_question_without_one_of_its_fields_is_refused(catalog, tmp_path, name):
    write_records(tmp_path / "q.jsonl", [{key: value for key, value in RECORD.items() if key != name}])
    with pytest.raises(BundleMLLMError, match=f"row 1 has no `{name}`"):
        load_questions(tmp_path / "q.jsonl", catalog)


def test_repeated_or_no_questions_are_refused(catalog, tmp_path):
    write_records(tmp_path / "q.jsonl", [RECORD, RECORD])
    with pytest.raises(BundleMLLMError, match="row 2 repeats the question 'b-0'"):
        load_questions(tmp_path / "q.jsonl", catalog)
    write_records(tmp_path / "q.jsonl", [])
    with pytest.raises(BundleMLLMError, match="holds no question"):
        load_questions(tmp_path / "q.jsonl", catalog)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".csv.gz", ".parquet"])
def test_questions_are_the_same_in_every_format(catalog, splits, tmp_path, suffix):
    made = make_questions(splits.train, catalog, splits, num_candidates=4, seed=0)
    save_questions(tmp_path / f"q{suffix}", made)
    assert load_questions(tmp_path / f"q{suffix}", catalog) == made
