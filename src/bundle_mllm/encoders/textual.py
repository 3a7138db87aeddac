"""Embed items by their texts (title, category, description): a sentence encoder, or TF-IDF with nothing to download.

Knows nothing about pictures, sounds, bundles or users.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import sparse

from bundle_mllm.data.folder import DatasetFolder
from bundle_mllm.data.words import words
from bundle_mllm.encoders.base import Encoded, FittedState, FittingEncoder, Progress
from bundle_mllm.encoders.batches import Reading
from bundle_mllm.encoders.pretrained import PretrainedEncoder, load_tower, loading, source_name
from bundle_mllm.encoders.relational import truncated_svd
from bundle_mllm.errors import BundleMLLMError

MAX_TOKENS = 512
UNKNOWN_WORDS = 0.05
"""Share of words beyond those unknown at first from which a vocabulary counts as outdated (ours)."""


class TfidfEncoder(FittingEncoder):
    """Describe each item by the words of its text: TF-IDF, reduced by truncated SVD.

    A text's weights are (1 + log count) · (log((1 + N) / (1 + df)) + 1), scaled to length 1 (the smoothed form of
    scikit-learn with sublinear counts); its vector is its row of U S. Only words of two items or more count. See
    `data.words.words` for what a word is. Vocabulary, weights and V are what it fits: a new text is described by the
    words that it shares with those.

    Args:
        dim: Length of a vector; columns beyond the rank are zero.
    """

    modality = "textual"

    def __init__(self, dim: int = 128):
        self.dim = dim
        self.name = "tfidf-2" if dim == 128 else f"tfidf-2 ({dim} wide)"

    def encode(self, folder: DatasetFolder, progress: Progress | None = None) -> Encoded:
        """Describe the texts of a folder; an item without a word that counts is absent."""
        counts = _count_words(folder)
        if self.fitted is None:
            vocabulary, idf = fit_tfidf(counts)
            weights = tfidf(counts, vocabulary, idf)
            vectors = truncated_svd(weights, self.dim)[1] if weights.nnz else np.zeros((0, max(1, len(idf))))
            known, total = _known_words(counts, vocabulary)
            values = {"vocabulary": vocabulary, "known_words": known, "words": total}
            self.fitted = FittedState(values, {"idf": idf, "vectors": vectors})
        else:
            weights = tfidf(counts, self.fitted.values["vocabulary"], self.fitted.arrays["idf"])
        projected = np.asarray(weights @ self.fitted.arrays["vectors"].T)  # [num_items, kept]
        features = np.zeros((len(counts), self.dim), dtype=np.float32)  # [num_items, dim]
        features[:, : projected.shape[1]] = projected
        if progress is not None:
            progress(len(counts), len(counts))
        return Encoded(features, np.diff(weights.indptr) > 0)

    def still_fits(self, folder: DatasetFolder) -> bool:
        """Return whether the vocabulary knows a share of the words that is at most `UNKNOWN_WORDS` below the first."""
        assert self.fitted is not None
        values = self.fitted.values
        known, total = _known_words(_count_words(folder), values["vocabulary"])
        return known / max(1, total) >= values["known_words"] / max(1, values["words"]) - UNKNOWN_WORDS


def fit_tfidf(counts: Sequence[Counter[str]]) -> tuple[list[str], np.ndarray]:
    """Return the words of two texts or more, sorted, and their inverse document frequencies `[num_words]`."""
    frequency = Counter(word for count in counts for word in count)
    vocabulary = sorted(word for word, number in frequency.items() if number > 1)
    idf = [np.log((1 + len(counts)) / (1 + frequency[word])) + 1 for word in vocabulary]
    return vocabulary, np.array(idf, dtype=np.float64)


def tfidf(counts: Sequence[Counter[str]], vocabulary: Sequence[str], idf: np.ndarray) -> sparse.csr_array:
    """Weigh the words of texts, given how often each occurs: `[num_texts, num_words]`, rows of length 1 (or 0).

    Columns are the words of the vocabulary; see `fit_tfidf`.
    """
    column_of = {word: column for column, word in enumerate(vocabulary)}
    rows, columns, weights = [], [], []
    for row, count in enumerate(counts):
        for word, number in count.items():
            if (column := column_of.get(word)) is not None:
                rows.append(row)
                columns.append(column)
                weights.append((1 + np.log(number)) * idf[column])
    matrix = sparse.csr_array((weights, (rows, columns)), shape=(len(counts), max(1, len(column_of))))
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)))
    return sparse.csr_array(sparse.diags_array(1 / np.where(lengths > 0, lengths, 1)) @ matrix)


def _count_words(folder: DatasetFolder) -> list[Counter[str]]:
    return [Counter(words(item.text)) for item in folder.catalog]


def _known_words(counts: Sequence[Counter[str]], vocabulary: Sequence[str]) -> tuple[int, int]:
    """Return how many words of texts the vocabulary has, and how many there are, each word of a text counted once."""
    known = set(vocabulary)
    return sum(len(known & count.keys()) for count in counts), sum(map(len, counts))


def tokenize(tokenizer: Any, max_length: int, text: str) -> Reading:
    """Cut a text into tokens, padded to one length."""
    tokens = tokenizer(text, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt")
    return Reading({name: tokens[name] for name in ("input_ids", "attention_mask")})


class SentenceEncoder(PretrainedEncoder):
    """Embed texts with an encoder of transformers: the mean of the last hidden states over the text's tokens.

    That is how most models of sentence-transformers are trained (Reimers and Gurevych, 2019); one that was trained to
    use its first or last token gives less good vectors here. Texts are cut at the model's length, at most 512 tokens.

    Args:
        model: Name on the Hub, or folder.
        device: Where the model runs.

    Raises:
        BundleMLLMError: If the model cannot be loaded, has a decoder, or its tokenizer is empty.
    """

    modality = "textual"
    field = "text"

    def __init__(self, model: str, device: torch.device):
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        what = f"The textual encoder 'transformers:{model}'"
        with loading(what):
            config = AutoConfig.from_pretrained(model)
            if config.is_encoder_decoder:
                raise BundleMLLMError(f"{what} is an encoder with a decoder: give a model that is an encoder alone.")
            tokenizer = AutoTokenizer.from_pretrained(model)
        tower = load_tower(AutoModel.from_pretrained, model, what=what, may_lack=("pooler.",))
        num_embeddings = tower.get_input_embeddings().num_embeddings  # pyright: ignore[reportCallIssue]
        if len(tokenizer) < num_embeddings // 2:
            raise BundleMLLMError(
                f"{what} has a tokenizer of {len(tokenizer)} tokens for {num_embeddings} embeddings, so all "
                "texts would get the same vector: its files are incomplete; download them again (not with "
                "HF_HUB_OFFLINE=1), or give a folder that holds tokenizer.json."
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        longest = min(MAX_TOKENS, tokenizer.model_max_length, _max_positions(config))
        super().__init__(
            tower,
            device,
            partial(tokenize, tokenizer, longest),
            name=f"transformers:{source_name(model)}",
            source=model,
            preprocessing={"text": "title. category. description", "max_tokens": longest, "pooling": "mean"},
        )
        self.dim = config.hidden_size

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean of the hidden states of each text, `[n, dim]`."""
        mask = inputs["attention_mask"]  # [n, longest]
        used = mask.any(dim=0)
        ids, mask = inputs["input_ids"][:, used], mask[:, used]
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # [n, length, dim]
        return (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def _max_positions(config: Any) -> int:
    """Return the maximal number of tokens; RoBERTa numbers positions from behind its padding token."""
    positions = getattr(config, "max_position_embeddings", None) or MAX_TOKENS
    return positions - 2 if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else positions
