"""Settings that nothing can be drawn from are refused."""

from dataclasses import replace

import pytest

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.synthetic.settings import SyntheticSettings, one_signal


def test_the_demo_has_576_items_and_a_catalog_of_one_signal_864():
    assert (SyntheticSettings().num_themes, SyntheticSettings().num_items) == (32, 576)
    assert (one_signal("media").num_themes, one_signal("media").num_items) == (24, 864)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domain": "music"}, "domain is 'music': choose one of 'fashion', 'playlist'"),
        ({"signals": {"smell": 4}}, "signal is 'smell': choose one of 'title', 'media', 'user_item', 'bundle_item'"),
        ({"attribute": "smell"}, "attribute is 'smell': choose one of 'category', 'list', 'number', 'date'"),
        ({"signals": {"attribute": 101}}, "101 for values of the attribute: choose 0 to 100"),
        ({"seed": -1}, "seed is -1, so nothing can be drawn"),
        ({"theme_purity": 1.5}, "theme purity is 1.5"),
        ({"theme_purity": 0.0}, "theme purity is 0.0"),
        ({"num_train": 0}, "cannot have 0 for num_train: choose 1 to 100,000"),
        ({"num_users": 10**6}, "cannot have 1000000 for num_users"),
        ({"signals": {"media": 49}}, "49 for values of the media in fashion: choose 0 to 48"),
        ({"signals": {"title": 1}}, "1 for themes: choose 2"),
        ({"signals": {"title": 2}, "num_test": 60_000}, "62600 for bundles, no two of them alike"),
        ({"bundle_sizes": (4, 10)}, "10 for items of a bundle: choose 2 to 9"),
        ({"bundle_sizes": ()}, "0 for items of a bundle"),
        ({"cold_share": 0.6}, "0.6 for cold_share"),
    ],
)
def test_settings_that_nothing_can_be_drawn_from_are_refused(arguments, message):
    with pytest.raises(BundleMLLMError, match=message):
        replace(SyntheticSettings(), **arguments)


def test_sounds_cannot_carry_24_themes():
    with pytest.raises(BundleMLLMError, match="48 for values of the media in playlist: choose 0 to 4"):
        one_signal("media", domain="playlist")
