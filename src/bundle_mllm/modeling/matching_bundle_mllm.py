"""Matching: how well each option's features go with those of the partial bundle (ours; off by default).

Knows nothing about the backbone, token ids, titles or files.
"""

import torch
from torch import nn
from torch.nn import functional

from .configuration_bundle_mllm import BundleMLLMConfig


class BundleMLLMMatchingLinear(nn.Linear):
    """A linear map of the matching; keeps torch's own initialization."""


class BundleMLLMFeatureMap(nn.Module):
    """A linear map of standardized features plus a small MLP: the linear part keeps what their cosines tell."""

    def __init__(self, width: int, out_features: int, config: BundleMLLMConfig):
        super().__init__()
        self.linear = BundleMLLMMatchingLinear(width, out_features)
        self.linear_1 = BundleMLLMMatchingLinear(width, 2 * config.matching_hidden_size)
        self.linear_2 = BundleMLLMMatchingLinear(2 * config.matching_hidden_size, out_features)
        self.dropout = nn.Dropout(config.matching_dropout)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map [n, width] to [n, out_features]."""
        features = self.dropout(features)
        return self.linear(features) + self.linear_2(self.dropout(functional.gelu(self.linear_1(features))))


class BundleMLLMMatching(nn.Module):
    """Score the options of a question against its partial bundle, from item features alone.

    Every item has a query `q`, a key `k` and a bias `b`, each the sum over its present modalities of a map of that
    modality's standardized features. With the partial bundle P and the option c,

        score(c) = t cos(sum_{p in P} q_p / |q_p|, k_c) + b_c + sum_m w_m mean_{p in P} cos(x_pm, x_cm)

    where `x_m` are the standardized features of modality m, and `t` and `w` are learned: two towers, as in retrieval,
    beside the plain likeness of features. The log-probabilities among the K options of a question, plus log K, are
    added to `backbone_weight` times the logits of their letters, so that the answer is a product of two experts, the
    backbone and the matching. This is done in the hidden state from which the answer is read, with one vector per
    letter: whatever reads the head (an adapter, generation) reads it, too.

    In training mode the matching is silent, so that the backbone learns to answer alone. A backbone that was trained
    beside it learned what the matching had left over of the training answers, which is mostly chance.
    """

    def __init__(self, config: BundleMLLMConfig, embedding_size: int):
        super().__init__()
        width = config.matching_hidden_size
        self.width = width
        self.maps = nn.ModuleDict(
            {name: BundleMLLMFeatureMap(dim, 2 * width + 1, config) for name, dim in config.modalities.items()}
        )
        self.temperature = nn.Parameter(torch.empty(1))
        self.likeness = nn.Parameter(torch.empty(len(self.maps)))
        self.register_buffer("letters", torch.empty(len(config.answer_token_ids), embedding_size))

    @torch.no_grad()
    def match_letters(self, head: torch.Tensor, letters: list[int]) -> None:
        """Set the letters' vectors so that each adds 1 to the logit of its letter and nothing to another letter's.

        Of all vectors that do so, each is the one that adds least to all other tokens (in squares).

        Args:
            head: [vocab_size, embedding_size]
            letters: Tokens of the letters.
        """
        weight = head.detach().double()
        of_letters = weight[letters]  # [num_letters, embedding_size]
        others = weight.T @ weight - of_letters.T @ of_letters  # [embedding_size, embedding_size]
        others.diagonal().add_(1e-6 * others.diagonal().mean())
        solved = torch.linalg.solve(others, of_letters.T)  # [embedding_size, num_letters]
        self.letters.copy_(torch.linalg.solve(of_letters @ solved, solved, left=False).T)

    def forward(
        self,
        features: dict[str, torch.Tensor],
        present: torch.BoolTensor,
        shown: torch.LongTensor,
        options: torch.LongTensor,
        question_of_shown: torch.LongTensor,
        question_of_option: torch.LongTensor,
    ) -> torch.Tensor:
        """Score all options of a batch of questions.

        Args:
            features: [n, width] of each modality, standardized.
            present: [n, num_modalities]
            shown: [num_shown] indices below n: the items of all partial bundles.
            options: [num_options] indices below n: the options of all questions.
            question_of_shown: [num_shown] number of the question.
            question_of_option: [num_options] number of the question.

        Returns:
            [num_options] float32 scores.
        """
        mapped = torch.stack(
            [encode(features[name]) * present[:, i, None] for i, (name, encode) in enumerate(self.maps.items())]
        ).sum(dim=0)
        query, key, bias = mapped.float().split([self.width, self.width, 1], dim=-1)  # [n, d], [n, d], [n, 1]
        num_questions = int(torch.cat([question_of_shown, question_of_option]).max()) + 1

        def gather(vectors: torch.Tensor) -> torch.Tensor:
            """Add up the shown items' vectors [n, width] of each question, once per option."""
            sums = vectors.new_zeros(num_questions, vectors.shape[1])
            return sums.index_add(0, question_of_shown, vectors[shown])[question_of_option]

        cosine = functional.cosine_similarity(gather(functional.normalize(query, dim=-1)), key[options], dim=-1)
        scores = self.temperature.float() * cosine + bias[options, 0]
        counts = gather(bias.new_ones(len(bias), 1)).clamp(min=1)  # [num_options, 1]
        for column, name in enumerate(self.maps):
            unit = functional.normalize(features[name].float(), dim=-1) * present[:, column, None]
            likeness = (gather(unit) / counts * unit[options]).sum(dim=-1)
            scores = scores + self.likeness[column].float() * likeness
        return scores


def log_softmax_by(scores: torch.Tensor, groups: torch.LongTensor) -> torch.Tensor:
    """Return the log-probabilities of the scores [n] among those of the same group [n]."""
    num_groups = int(groups.max()) + 1
    highest = scores.new_full((num_groups,), -torch.inf).scatter_reduce(0, groups, scores.detach(), "amax")
    shifted = scores - highest[groups]
    return shifted - scores.new_zeros(num_groups).index_add(0, groups, shifted.exp()).log()[groups]


__all__ = ["BundleMLLMFeatureMap", "BundleMLLMMatching", "BundleMLLMMatchingLinear", "log_softmax_by"]
