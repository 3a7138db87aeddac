"""Texts: TF-IDF is scikit-learn's, the sentence encoder is its model's mean over tokens."""

from collections import Counter

import numpy as np
import pytest
import torch
import transformers
from sklearn.feature_extraction.text import TfidfVectorizer
from tiny_encoders import TEXT, seeded
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bundle_mllm.baselines.base import QuestionBatch
from bundle_mllm.baselines.similarity import TfidfCosine
from bundle_mllm.data import DatasetFolder, write_records
from bundle_mllm.data.memberships import ItemGroups
from bundle_mllm.data.words import words
from bundle_mllm.encoders import encode_folder
from bundle_mllm.encoders.textual import fit_tfidf, tfidf
from bundle_mllm.errors import BundleMLLMError

TITLES = ["Red shirt", "red  SHOE!", "green shoe, green", "a_shirt of Red", "", "green 2020 shirt", "2020 bag bag red"]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    records = [{"item_id": str(row), "title": title} for row, title in enumerate(TITLES)]
    records[1]["description"] = "worn with a red shirt"
    write_records(path / "items.jsonl", records)
    write_records(path / "bundles.jsonl", [{"bundle_id": "b", "items": ["0", "1"], "split": "train"}])
    return path


def stored(folder):
    features, present = DatasetFolder.open(folder).features(["textual"]).load()
    return features["textual"], present["textual"]


def weigh(texts):
    counts = [Counter(words(text)) for text in texts]
    return tfidf(counts, *fit_tfidf(counts)).toarray()


def test_weights_are_those_of_scikit_learn():
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, tokenizer=words, lowercase=False, token_pattern=None)
    expected = vectorizer.fit_transform(TITLES).toarray()
    ours = weigh(TITLES)
    np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_cosines_of_texts_are_kept_and_texts_without_words_are_absent(folder):
    summary = encode_folder(folder, textual="tfidf")["textual"]
    assert (summary.num_present, summary.dim, summary.issues) == (6, 128, ())
    features, present = stored(folder)
    assert present.tolist() == [True, True, True, True, False, True, True]
    texts = ["", *TITLES[1:]]
    texts[0], texts[1] = TITLES[0], TITLES[1] + ". worn with a red shirt"
    expected = weigh(texts)
    np.testing.assert_allclose(features @ features.T, expected @ expected.T, atol=1e-6)


@pytest.fixture
def sentence_model(tmp_path):
    vocabulary = {
        word: number for number, word in enumerate(["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", model_max_length=20
    )
    folder = tmp_path / "model"
    fast.save_pretrained(folder)
    config = transformers.BertConfig(**{**TEXT, "vocab_size": 32})
    seeded(lambda: transformers.BertModel(config, add_pooling_layer=False)).save_pretrained(folder)
    return folder


def test_a_sentence_is_the_mean_of_its_tokens_whatever_stands_beside_it(folder, sentence_model):
    summary = encode_folder(folder, textual=f"transformers:{sentence_model}", batch_size=4)["textual"]
    assert (summary.encoder, summary.num_present, summary.dim) == ("transformers:model", 6, 32)
    features, present = stored(folder)
    assert present.tolist() == [True, True, True, True, False, True, True]
    model = transformers.BertModel.from_pretrained(sentence_model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(sentence_model)
    for row, title in enumerate(TITLES):
        if title:
            text = title + (". worn with a red shirt" if row == 1 else "")
            inputs = tokenizer(text, truncation=True, max_length=20, return_tensors="pt")
            with torch.inference_mode():
                states = model(input_ids=inputs["input_ids"]).last_hidden_state
            expected = torch.nn.functional.normalize(states[0].mean(dim=0), dim=0)
            torch.testing.assert_close(features[row], expected, rtol=0, atol=2e-6)


def test_an_empty_tokenizer_is_refused(folder, sentence_model):
    (sentence_model / "tokenizer.json").unlink()
    empty = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>")), unk_token="<unk>"
    )
    empty.save_pretrained(sentence_model)
    with pytest.raises(
        BundleMLLMError, match=r"tokenizer of 1 tokens for 32 embeddings, so all texts would get the same vector"
    ):
        encode_folder(folder, textual=f"transformers:{sentence_model}")


def test_a_model_with_a_decoder_is_refused(folder, tmp_path):
    transformers.T5Config().save_pretrained(tmp_path / "t5")
    with pytest.raises(BundleMLLMError, match="is an encoder with a decoder: give a model that is an encoder alone"):
        encode_folder(folder, textual=f"transformers:{tmp_path / 't5'}")


def test_a_changed_description_is_noticed(folder, sentence_model):
    specs = ("tfidf", f"transformers:{sentence_model}")
    for spec in specs:
        encode_folder(folder, textual=spec)
        assert encode_folder(folder, textual=spec)["textual"].up_to_date
        records = [{"item_id": str(row), "title": t, "description": spec} for row, t in enumerate(TITLES)]
        write_records(folder / "items.jsonl", records)
        assert not encode_folder(folder, textual=spec)["textual"].up_to_date


def test_titles_with_combining_marks_are_alike_only_by_whole_words(tmp_path):
    titles = ["लाल जूते", "लाल साड़ी", "जाति लिली", "नई लिली"]  # red shoes, red sari, nutmeg lily, new lily
    write_records(
        tmp_path / "items.jsonl", [{"item_id": str(row), "title": title} for row, title in enumerate(titles)]
    )
    write_records(tmp_path / "bundles.jsonl", [{"bundle_id": "b", "items": ["0", "1"], "split": "train"}])
    folder = DatasetFolder.open(tmp_path)
    encode_folder(tmp_path, textual="tfidf")
    features, _ = stored(tmp_path)
    baseline = TfidfCosine()
    baseline.fit(folder, ())
    of_baseline = baseline.score(QuestionBatch([[0], [2]], [[1, 2, 3], [0, 1, 3]], 4))
    of_features = (features @ features.T).numpy()[[0, 0, 0, 2, 2, 2], [1, 2, 3, 0, 1, 3]]
    groups = ItemGroups.of_words(folder.catalog).csr()
    shared = (groups @ groups.T).toarray()[[0, 0, 0, 2, 2, 2], [1, 2, 3, 0, 1, 3]]
    for values in (of_baseline, of_features, shared):
        np.testing.assert_allclose(values, [1, 0, 0, 0, 0, 1], atol=1e-6)
