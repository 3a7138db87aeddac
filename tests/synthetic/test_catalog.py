"""Bundles, titles and interactions follow the settings: what carries the theme does, and nothing else."""

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from bundle_mllm.synthetic.catalog import KINDS, adjectives, attribute_cells, draw_catalog
from bundle_mllm.synthetic.settings import Attribute, Domain, Signal, SyntheticSettings, one_signal

DOMAINS, SIGNALS = get_args(Domain), get_args(Signal)
CARRYING = ("title", "media", "user_item")


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_bundle_of_the_demo_agrees_in_every_signal_and_repeats_no_kind(domain, seed):
    catalog = draw_catalog(SyntheticSettings(domain=domain, seed=seed, num_train=300))
    bundles = [rows for split in catalog.bundles.values() for rows in split]
    for rows in map(list, bundles):
        assert 4 <= len(rows) <= 6
        assert all(len(set(catalog.values[signal][rows])) == 1 for signal in CARRYING)
        assert len(set(catalog.kind[rows])) == len(rows)
    assert len({frozenset(rows) for rows in bundles}) == len(bundles)


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_tenth_of_the_items_is_cold_and_in_test_bundles_all_the_same(domain):
    catalog = draw_catalog(SyntheticSettings(domain=domain))
    trained = {row for rows in catalog.bundles["train"] for row in rows}
    cold = set(np.flatnonzero(catalog.cold))
    assert trained == set(range(len(catalog.titles))) - cold
    assert 0.08 < len(cold) / len(catalog.titles) < 0.12
    tested = [row for rows in catalog.bundles["test"] for row in rows]
    assert 0.05 < np.mean([row in cold for row in tested]) < 0.15


def test_a_cold_item_is_replaced_by_its_copy_where_items_of_a_theme_have_several_values_and_kinds_repeat():
    settings = replace(one_signal("title"), cold_share=0.3, theme_purity=1.0)
    catalog = draw_catalog(settings)
    for rows in map(list, catalog.bundles["train"]):
        assert not catalog.cold[rows].any()
        assert len(set(rows)) == 6
        assert len(set(catalog.theme[rows])) == 1


@pytest.mark.parametrize("domain", DOMAINS)
def test_each_title_of_the_demo_stands_for_exactly_one_item_of_each_look_and_group_of_users(domain):
    catalog = draw_catalog(SyntheticSettings(domain=domain, seed=1))
    by_title: dict[str, list[tuple[int, int]]] = {}
    pairs = zip(catalog.values["media"].tolist(), catalog.values["user_item"].tolist(), strict=True)
    for title, pair in zip(catalog.titles, pairs, strict=True):
        by_title.setdefault(title, []).append(pair)
    assert all(
        sorted(pairs_of_title) == [(look, group) for look in range(4) for group in range(2)]
        for pairs_of_title in by_title.values()
    )


@pytest.mark.parametrize("domain", DOMAINS)
def test_titles_of_the_demo_are_two_words_of_one_level_and_the_kind(domain):
    settings = SyntheticSettings(domain=domain)
    catalog = draw_catalog(settings)
    words = adjectives(settings)
    for title, level, kind in zip(catalog.titles, catalog.levels["title"], catalog.kind, strict=True):
        *adjectives_of_title, noun = title.split()
        assert len(adjectives_of_title) == 2
        assert set(adjectives_of_title) <= set(words[level])
        assert noun == KINDS[domain][kind]
    assert len({word for of_level in words for word in of_level}) == 24  # No adjective is of two levels.


@pytest.mark.parametrize("domain", DOMAINS)
def test_users_of_the_demo_interact_mostly_with_items_of_one_level_whatever_title_and_look(domain):
    catalog = draw_catalog(SyntheticSettings(domain=domain))
    user, row = catalog.interactions.T
    share = np.bincount(user, catalog.levels["user_item"][row]) / np.bincount(user)
    assert (share[0::2] < 0.5).all()
    assert (share[1::2] > 0.5).all()
    assert 0.88 < np.maximum(share, 1 - share).mean() < 0.92
    for signal in ("title", "media"):
        counts = np.bincount(catalog.levels[signal][row])
        assert counts.min() > 0.9 * counts.mean()
    assert set(row) == set(range(len(catalog.titles)))


@pytest.mark.parametrize("signal", SIGNALS)
def test_one_signal_alone_carries_the_theme(signal):
    catalog = draw_catalog(replace(one_signal(signal, seed=1), num_train=60))
    for name, value in catalog.values.items():
        agreement = (value % 24 == catalog.theme).mean()
        assert agreement == 1 if name == signal else agreement < 3 / 24
    for kind in range(9):
        assert set(np.bincount(catalog.theme[catalog.kind == kind], minlength=24)) == {4}


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_title_stands_for_items_of_all_themes_alike_unless_titles_carry_them(signal):
    catalog = draw_catalog(replace(one_signal(signal), num_train=60))
    by_title: dict[str, list[int]] = {}
    for title, theme in zip(catalog.titles, catalog.theme.tolist(), strict=True):
        by_title.setdefault(title, []).append(theme)
    if signal != "title":
        assert all(sorted(themes) == sorted([*range(24), *range(24)]) for themes in by_title.values())
    else:
        assert all(len(themes) == 1 for themes in by_title.values())
        words: dict[int, set[str]] = {}
        for title, theme in zip(catalog.titles, catalog.theme.tolist(), strict=True):
            words.setdefault(theme, set()).update(set(title.split()[:2]) - {"plain", "simple"})
        assert {len(of_theme) for of_theme in words.values()} == {2}
        assert len(set.union(*words.values())) == 48


@pytest.mark.parametrize("attribute", get_args(Attribute))
def test_the_column_of_an_attribute_shows_the_value_of_an_item_and_nothing_else(attribute):
    catalog = draw_catalog(replace(one_signal("attribute", attribute=attribute), num_train=60))
    _, cells = attribute_cells(catalog)
    read = {
        "category": lambda cell: cell,
        "list": lambda cell: next(tag for tag in cell if tag.startswith("tag")),
        "number": lambda cell: round(math.log(cell / 5, 1.08)),
        "date": lambda cell: cell[:4],
    }[attribute]
    pairs = set(zip(map(read, cells), catalog.values["attribute"].tolist(), strict=True))
    assert len(pairs) == len({shown for shown, _ in pairs}) == len({value for _, value in pairs}) == 48
    if attribute == "list":
        assert all(len(set(cell)) >= 2 for cell in cells)
        assert len({tuple(cell) for cell in cells}) > 800


def test_users_of_one_value_do_not_interact_with_the_other_value_of_its_theme():
    catalog = draw_catalog(replace(one_signal("user_item"), num_train=60))
    user, row = catalog.interactions.T
    value = catalog.values["user_item"][row]
    assert 0.83 < (value == user % 48).mean() < 0.93
    assert (value == (user + 24) % 48).mean() < 0.01
    assert np.bincount(row, minlength=864).min() >= 3


def test_most_items_of_a_bundle_are_of_its_theme():
    catalog = draw_catalog(replace(one_signal("media"), theme_purity=0.8))
    themes = [catalog.theme[list(rows)] for rows in catalog.bundles["train"]]
    assert {len(of_bundle) for of_bundle in themes} == {6}
    assert np.mean([np.bincount(of_bundle).max() for of_bundle in themes]) == pytest.approx(4.8, abs=0.1)


@pytest.mark.parametrize("signals", [{"media": 4, "bundle_item": 2}, {"title": 12, "user_item": 3}])
def test_other_mixtures_of_signals_carry_what_they_are_asked_to(signals):
    catalog = draw_catalog(SyntheticSettings(signals=signals, values_per_level=2, num_train=60))
    assert len(catalog.titles) == np.prod(list(signals.values())) * 36
    numbers = [catalog.levels[signal] for signal in signals]
    assert (np.ravel_multi_index(numbers, tuple(signals.values())) == catalog.theme).all()
    for signal, number in signals.items():
        if signal in catalog.values:
            assert (catalog.values[signal] % number == catalog.levels[signal]).all()
