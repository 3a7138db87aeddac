"""EASE against the formula of the paper, on either side."""

import numpy as np
import pytest

from bundle_mllm.baselines import ease
from bundle_mllm.baselines.base import QuestionBatch, UnavailableError
from bundle_mllm.baselines.ease import EASE, REGULARIZATIONS, UserEASE
from bundle_mllm.data import DatasetFolder
from bundle_mllm.data.tables import write_records


def make_folder(path, num_items, num_bundles, seed=0):
    rng = np.random.default_rng(seed)
    write_records(path / "items.jsonl", [{"item_id": str(n)} for n in range(num_items + 2)])  # two are in no bundle
    bundles = [rng.choice(num_items, 3, replace=False).tolist() for _ in range(num_bundles)]
    records = [{"bundle_id": f"b{n}", "items": list(map(str, b)), "split": "train"} for n, b in enumerate(bundles)]
    write_records(path / "bundles.jsonl", records)
    log = [{"user_id": f"u{n}", "item_id": str(i)} for n, b in enumerate(bundles) for i in b]
    write_records(path / "interactions.csv", log)
    return DatasetFolder.open(path), bundles


@pytest.mark.parametrize(("num_items", "num_bundles"), [(40, 15), (8, 60)], ids=["bundles", "items"])
@pytest.mark.parametrize("make", [EASE, UserEASE])
def test_the_weights_are_those_of_the_paper_whichever_side_is_smaller(tmp_path, num_items, num_bundles, make):
    folder, bundles = make_folder(tmp_path, num_items, num_bundles)
    x = np.zeros((num_bundles, num_items + 2))
    for row, bundle in enumerate(bundles):
        x[row, bundle] = 1
    inverse = np.linalg.inv(x.T @ x + 7 * np.eye(num_items + 2))
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    baseline = make(regularization=7.0)
    baseline.fit(folder, folder.bundles.train)
    partials, others = [[0, 3], [5]], np.arange(num_items + 2)
    scores = baseline.score_catalog(QuestionBatch.of_catalog(partials, num_items + 2))
    for partial, row in zip(partials, scores, strict=True):
        kept = np.setdiff1d(others, partial)
        np.testing.assert_allclose(row[kept], weights[partial].sum(axis=0)[kept], atol=1e-9)
    assert baseline._inverse.shape[0] <= min(num_items, num_bundles)
    assert not scores[:, -2:].any()


def test_held_out_training_bundles_choose_the_regularization(tmp_path):
    folder, _ = make_folder(tmp_path, 12, 80)
    baseline = EASE()
    baseline.fit(folder, folder.bundles.train)
    assert baseline.regularization in REGULARIZATIONS
    again = EASE(regularization=baseline.regularization)
    again.fit(folder, folder.bundles.train)
    batch = QuestionBatch.of_catalog([[1]], 14)
    np.testing.assert_array_equal(baseline.score_catalog(batch), again.score_catalog(batch))


def test_users_whose_log_shows_the_held_out_bundles_do_not_choose_the_regularization(tmp_path, monkeypatch):
    folder, _ = make_folder(tmp_path, 30, 60)  # each user has the items of one bundle
    products, solve = {}, EASE._solve

    def spy(baseline, groups, regularization):
        products.setdefault(type(baseline), []).append((groups @ groups.T).toarray())
        solve(baseline, groups, regularization)

    monkeypatch.setattr(EASE, "_solve", spy)
    for baseline in (EASE(), UserEASE()):
        baseline.fit(folder, folder.bundles.train)
    for of_bundles, of_users in zip(products[EASE], products[UserEASE], strict=True):
        np.testing.assert_array_equal(of_users, of_bundles)
    assert products[UserEASE][0].sum() < products[UserEASE][-1].sum() == 9 * 60  # in the end all of the log counts


def test_a_matrix_that_is_too_large_is_refused(tmp_path, monkeypatch):
    folder, _ = make_folder(tmp_path, 40, 15)
    monkeypatch.setattr(ease, "MAX_SIDE", 10)
    with pytest.raises(UnavailableError, match="has 15 bundles or users"):
        EASE().fit(folder, folder.bundles.train)
