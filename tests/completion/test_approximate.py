"""Approximate retrieval: exact scores of what it finds, its recall, and exact answers where it finds too few."""

import sys

import numpy as np
import pytest
import torch
from tiny_models import make_completer, make_retriever

from bundle_mllm.completion import approximate, complete
from bundle_mllm.completion.approximate import ApproximateIndex
from bundle_mllm.completion.complete import RuledCompleter, load_ruled_completer
from bundle_mllm.completion.rules import CatalogRules, Rules
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.modeling import BundleCompleter, BundleItemProcessor

NUM_ITEMS = 600
PARTIAL = torch.tensor([[3, 40, -1], [500, 7, 9]])


@pytest.fixture(scope="module")
def retriever():
    pytest.importorskip("faiss")
    generator = torch.Generator().manual_seed(0)
    features = {"visual": torch.randn(NUM_ITEMS, 12, generator=generator)}
    groups = {"textual": [list(range(n, NUM_ITEMS, 60)) for n in range(60)]}
    return make_retriever(features, groups=groups, modalities={"visual": 12})


@pytest.fixture
def completer(retriever):
    processor = BundleItemProcessor([f"i{row}" for row in range(NUM_ITEMS)], [""] * NUM_ITEMS, {"visual": 12})
    return BundleCompleter(processor, retriever=retriever)


def questions(number=20):
    return [{"partial": [f"i{n}", f"i{(n * 7 + 100) % NUM_ITEMS}"]} for n in range(number)]


def ids(answers):
    return [[item["item_id"] for item in each.items] for each in answers]


def test_what_is_found_has_its_exact_score_and_so_has_what_shares_a_group(retriever, monkeypatch):
    monkeypatch.setattr(approximate, "NUM_FOUND", 50)
    exact, found = (
        retriever.catalog_scores(PARTIAL),
        retriever.catalog_scores(PARTIAL, search=ApproximateIndex(retriever).search()),
    )
    is_found = found > -torch.inf
    torch.testing.assert_close(found[is_found], exact[is_found], atol=1e-4, rtol=1e-4)
    assert int(is_found.sum(dim=1).min()) >= 50 and int(is_found.sum(dim=1).max()) <= 50 + 3 * 10
    for row, partial in zip(is_found, PARTIAL.tolist(), strict=True):
        shared = {item for shown in partial if shown >= 0 for item in range(shown % 60, NUM_ITEMS, 60)} - set(partial)
        assert row[sorted(shared)].all() and not row[[shown for shown in partial if shown >= 0]].any()


def test_recall_is_the_share_of_the_best_that_is_found(retriever, monkeypatch):
    monkeypatch.setattr(approximate, "NUM_PROBED", 24)
    monkeypatch.setattr(approximate, "RECALL_AT", 20)
    assert ApproximateIndex(retriever).recall == pytest.approx(1, abs=0.01)
    monkeypatch.setattr(approximate, "NUM_FOUND", 1)
    assert ApproximateIndex(retriever).recall < 0.9


def test_answers_are_nearly_those_of_exact_retrieval(completer, monkeypatch):
    monkeypatch.setattr(approximate, "NUM_PROBED", 12)
    index = ApproximateIndex(completer.retriever)
    exact = ids(RuledCompleter(completer).complete(questions(), top_k=5))
    found = ids(RuledCompleter(completer, index=index).complete(questions(), top_k=5))
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(exact, found, strict=True)]) > 0.9


def test_where_the_index_finds_too_few_or_rules_choose_all_items_are_compared(completer, monkeypatch):
    monkeypatch.setattr(approximate, "NUM_PROBED", 1)
    index = ApproximateIndex(completer.retriever)
    allowed = np.arange(NUM_ITEMS) % 200 == 5  # three items, which may be in clusters that are not looked at
    few = CatalogRules(Rules(where="x"), allowed, np.where(allowed, -1, 0).astype(np.int32), ("x",))
    expected = ids(RuledCompleter(completer, few).complete(questions(), top_k=3))
    assert ids(RuledCompleter(completer, few, index=index).complete(questions(), top_k=3)) == expected
    assert all(len(each) >= 2 for each in expected)
    everything = np.ones(NUM_ITEMS, dtype=bool), np.full(NUM_ITEMS, -1, dtype=np.int32)
    boosted = CatalogRules(Rules(), *everything, offsets=np.linspace(0, 9, NUM_ITEMS, dtype=np.float32))
    monkeypatch.setattr(ApproximateIndex, "search", None)  # it is not asked
    RuledCompleter(completer, boosted, index=index).complete(questions(2))
    monkeypatch.setattr(complete, "NUM_FOUND", 5)
    RuledCompleter(completer, index=index).complete(questions(2), top_k=30)


def test_loading_says_how_much_is_found(completer, tmp_path, capsys):
    completer.save_pretrained(tmp_path / "model")
    shop = load_ruled_completer(tmp_path / "model", device="cpu", retrieval="approximate")
    assert shop.index is not None
    assert f"approximate retrieval finds {shop.index.recall:.1%} of the best 100 items" in capsys.readouterr().err
    assert load_ruled_completer(tmp_path / "model", device="cpu").index is None


def test_what_is_missing_is_one_line(monkeypatch):
    with pytest.raises(BundleMLLMError, match="this model has no retriever"):
        ApproximateIndex.of(make_completer(retriever=False))
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(BundleMLLMError, match=r'needs faiss: pip install "bundle-mllm\[faiss\]"'):
        ApproximateIndex.of(make_completer(ranker=False))
