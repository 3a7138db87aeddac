"""Words are whole in every script, and texts of different words have none in common."""

from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from bundle_mllm.data.words import words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Crème_brûlée №5, ＡＢＣ Straße", ["crème", "brûlée", "no5", "abc", "strasse"]),
        ("e\u0301tude İstanbul", ["étude", "i̇stanbul"]),  # a combining accent, and a dot that folding leaves
        ("ΤΣΆΝΤΑ τσάντα", ["τσάντα", "τσάντα"]),
        ("लाल जूते", ["लाल", "जूते"]),  # Hindi
        ("ఎరుపు చొక్కా", ["ఎరుపు", "చొక్కా"]),  # Telugu
        ("கருப்பு சட்டை", ["கருப்பு", "சட்டை"]),  # Tamil
        ("שָׁלוֹם עוֹלָם", ["שָׁלוֹם", "עוֹלָם"]),  # Hebrew with points
        ("كِتَاب مُحَمَّد", ["كِتَاب", "مُحَمَّد"]),  # Arabic with vowels
        ("می\u200cخواهم کتاب", ["میخواهم", "کتاب"]),  # Persian with a joiner
        ("红色T恤衫 2020年", ["红色", "t", "恤衫", "2020", "年"]),
        ("・ドレス ｶﾞﾑ", ["ドレ", "レス", "ガム"]),  # a dot is no letter; narrow kana are wide ones
        ("빨간 신발을", ["빨간", "신발", "발을"]),
        ("เสื้อ", ["เสื้", "สื้อ"]),  # Thai vowel signs stay on their consonants
        ("❤\ufe0f red\u00addish __ !", ["reddish"]),
        ("", []),
    ],
)
def test_words_are_split_as_the_script_writes_them(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    "pair",
    [
        ("लाल जूते", "जाति लिली"),
        ("ఎరుపు చొక్కా", "నీలం చీర"),
        ("שָׁלוֹם עוֹלָם", "כּוֹבַע צָהֹב"),
        ("كِتَاب مُحَمَّد", "قَمِيص أَزْرَق"),
        ("红色连衣裙", "黑皮鞋"),
        ("เสื้อสีแดง", "รองเท้า"),
    ],
)
def test_texts_without_a_word_in_common_have_cosine_zero(pair):
    assert not Counter(words(pair[0])) & Counter(words(pair[1]))
    vectors = TfidfVectorizer(tokenizer=words, lowercase=False, token_pattern=None).fit_transform(pair).toarray()
    assert vectors[0] @ vectors[1] == 0
    np.testing.assert_allclose((vectors**2).sum(axis=1), 1)


def test_more_text_of_the_same_words_shares_them():
    for text, longer in (("红色鞋", "新款红色鞋子"), ("लाल जूते", "नए लाल जूते"), ("เสื้อ", "เสื้อสีแดง")):
        assert set(words(text)) < set(words(longer))
