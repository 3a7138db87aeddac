"""Matching: how well each option's features go with those of the partial bundle (ours; off by default).

Knows nothing about the backbone, token ids, titles or files.
"""

import torch
from torch import nn
from torch.nn import functional

from .configuration_bundle_mllm import BUNDLE_CATEGORY, BundleMLLMConfig
from .items_bundle_mllm import expand

OF_CONTENT = (BUNDLE_CATEGORY, "textual")
"""Relations that follow from what an item is rather than from who met it. The number of its groups says nothing of it,
and would only set apart items that come later, which have none."""


class BundleMLLMMatchingLinear(nn.Linear):
    """A linear map of the matching; keeps torch's own initialization."""


class BundleMLLMFeatureMap(nn.Module):
    """A linear map of standardized features plus a small MLP: the linear part keeps what their cosines tell."""

    def __init__(self, width: int, out_features: int, dropout: float, config: BundleMLLMConfig):
        super().__init__()
        self.linear = BundleMLLMMatchingLinear(width, out_features)
        self.linear_1 = BundleMLLMMatchingLinear(width, 2 * config.matching_hidden_size)
        self.linear_2 = BundleMLLMMatchingLinear(2 * config.matching_hidden_size, out_features)
        self.dropout = nn.Dropout(dropout)

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
    beside the plain likeness of features. With relations, a small MLP of this score and of what `compare` tells of the
    groups that option and partial bundle share, exactly, is added to it. It is trained after the rest, on bundles that
    the rest has not seen (stacking; Wolpert, 1992): on bundles that it has, the score looks surer than it is.

    The log-probabilities among the K options of a question, plus log K, are added to `backbone_weight` times the
    logits of their letters, so that the answer is a product of two experts, the backbone and the matching. This is
    done in the hidden state from which the answer is read, with one vector per letter: whatever reads the head (an
    adapter, generation) reads it, too.

    In training mode the matching is silent, so that the backbone learns to answer alone. A backbone that was trained
    beside it learned what the matching had left over of the training answers, which is mostly chance.
    """

    def __init__(self, config: BundleMLLMConfig, embedding_size: int):
        super().__init__()
        width = config.matching_hidden_size
        self.width = width
        self.maps = nn.ModuleDict()
        for name, dim in config.modalities.items():
            is_met = name in config.relations and name not in OF_CONTENT
            dropout = config.matching_relation_dropout if is_met else config.matching_dropout
            self.maps[name] = BundleMLLMFeatureMap(dim, 2 * width + 1, dropout, config)
        self.temperature = nn.Parameter(torch.empty(1))
        self.likeness = nn.Parameter(torch.empty(len(self.maps)))
        self.register_buffer("letters", torch.empty(len(config.answer_token_ids), embedding_size))
        self.weigh = None
        if config.relations:
            num_shared = 1 + sum(2 if name in OF_CONTENT else 3 for name in config.relations)
            self.register_buffer("shared_mean", torch.zeros(num_shared))
            self.register_buffer("shared_std", torch.ones(num_shared))
            sizes = [num_shared + 1, config.matching_hidden_size // 2 or 1, config.matching_hidden_size // 2 or 1]
            layers = [BundleMLLMMatchingLinear(*pair) for pair in zip(sizes, [*sizes[1:], 1], strict=True)]
            self.weigh = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])

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
        shared: torch.Tensor | None,
        shown: torch.LongTensor,
        options: torch.LongTensor,
        question_of_shown: torch.LongTensor,
        question_of_option: torch.LongTensor,
    ) -> torch.Tensor:
        """Score all options of a batch of questions.

        Args:
            features: [n, width] of each modality, standardized.
            present: [n, num_modalities]
            shared: [num_options, num_shared], what `compare` returned; `None` for the score of features alone.
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
        if shared is None:
            return scores
        shared = (shared - self.shared_mean.float()) / self.shared_std.float()
        inputs = torch.cat([shared, scores.unsqueeze(-1)], dim=-1)
        return scores + self.weigh(inputs.to(self.temperature)).float().squeeze(-1)

    def compare(
        self,
        edges: dict[str, tuple[torch.LongTensor, torch.LongTensor, torch.LongTensor]],
        num_items: int,
        shown: torch.LongTensor,
        options: torch.LongTensor,
        question_of_shown: torch.LongTensor,
        question_of_option: torch.LongTensor,
    ) -> torch.Tensor:
        """Count the groups that each option shares with the partial bundle P of its question, exactly.

        Of each relation, for the option c in the groups G_c (bundles or users):

            log(1 + |G_c|),
            mean_{p in P} sum_{g in G_p and G_c} |g|^(-1/2) / sqrt(|G_p| |G_c|),
            max_{g in G_c} |P in g| / |P|,

        that is, its popularity, its likeness to the shown items (as in item-based nearest neighbors) and the likeness
        of the group that is most like the partial bundle (as in user-based ones); last, log |P|. Relations in
        `OF_CONTENT` lack the first.

        Args:
            edges: What `gather_edges` returned for n items.
            num_items: n
            shown: [num_shown] indices below n: the items of all partial bundles.
            options: [num_options] indices below n: the options of all questions.
            question_of_shown: [num_shown] number of the question.
            question_of_option: [num_options] number of the question.

        Returns:
            [num_options, num_shared] float32
        """
        num_options = len(options)
        num_shown = question_of_shown.bincount(minlength=int(question_of_option.max()) + 1)[question_of_option]
        num_shown, columns = num_shown.clamp(min=1).float(), []
        for name, (owner, group, size) in edges.items():
            degree = owner.bincount(minlength=num_items)  # [n]
            first = degree.cumsum(0) - degree

            norm = degree.clamp(min=1).float().rsqrt()
            place, edge = expand(first[shown], degree[shown])
            keys, key = ((question_of_shown[place] << 32) | group[edge]).unique(return_inverse=True)
            count = key.bincount(minlength=len(keys)).float()  # shown items in each group of a question
            weight = norm.new_zeros(len(keys)).index_add(0, key, norm[shown][place])
            place, edge = expand(first[options], degree[options])
            asked = (question_of_option[place] << 32) | group[edge]
            found = torch.searchsorted(keys, asked).clamp(max=max(len(keys) - 1, 0))
            hit = keys[found] == asked if len(keys) else torch.zeros_like(asked, dtype=torch.bool)
            place, found, of_group = place[hit], found[hit], size[edge][hit].float().rsqrt()
            zeros = norm.new_zeros(num_options)
            alike = zeros.index_add(0, place, weight[found] * of_group) * norm[options]
            most = zeros.scatter_reduce(0, place, count[found], "amax")
            columns += [] if name in OF_CONTENT else [degree[options].float().log1p()]
            columns += [alike / num_shown, most / num_shown]
        return torch.stack([*columns, num_shown.log()], dim=-1)

    def feature_parameters(self) -> list[nn.Parameter]:
        """Return all parameters but those of the MLP that weighs their score."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("weigh.")]

    @torch.no_grad()
    def fit_statistics(self, shared: torch.Tensor) -> None:
        """Set what `compare` returned [num_options, num_shared] to be standardized by its mean and deviation."""
        std = shared.std(dim=0, correction=0)
        self.shared_mean.copy_(shared.mean(dim=0))
        self.shared_std.copy_(torch.where(std > 1e-6, std, 1.0))


def log_softmax_by(scores: torch.Tensor, groups: torch.LongTensor) -> torch.Tensor:
    """Return the log-probabilities of the scores [n] among those of the same group [n]."""
    num_groups = int(groups.max()) + 1
    highest = scores.new_full((num_groups,), -torch.inf).scatter_reduce(0, groups, scores.detach(), "amax")
    shifted = scores - highest[groups]
    return shifted - scores.new_zeros(num_groups).index_add(0, groups, shifted.exp()).log()[groups]


__all__ = ["BundleMLLMFeatureMap", "BundleMLLMMatching", "BundleMLLMMatchingLinear", "log_softmax_by"]
