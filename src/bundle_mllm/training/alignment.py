"""Give a backbone without pretraining a head start: items of one bundle begin with similar embeddings (ours).

Knows nothing about prompts, options or the backbone's layers.

A pretrained LLM knows that "linen" and "sandals" go together before stage one; random embeddings do not, and learning
it through the answers of multiple-choice questions is slow. Alignment learns it directly: the mean embedding of some
items of a training bundle should be closer (by cosine) to an item of the same bundle than to items of the other
bundles in the batch (InfoNCE, temperature 0.1). For words an item is the mean of its title's tokens; for item tokens
it is what fusion and projector make of its features. The layers of the scratch backbone read such likeness at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from tqdm.auto import tqdm

from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.data.folds import OutOfFoldFeatures as CrossFitted
from bundle_mllm.data.questions import Question
from bundle_mllm.modeling.matching_bundle_mllm import log_softmax_by
from bundle_mllm.training.cross_fitting import row_shift

if TYPE_CHECKING:
    from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMForCausalLM
    from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor

TEMPERATURE = 0.1
BATCH_SIZE = 256
MAX_SHOWN = 4
FITTED_TO = 4_096
"""Questions whose shared groups tell the matching their mean and standard deviation."""


def align_words(
    model: BundleMLLMForCausalLM,
    processor: BundleMLLMProcessor,
    catalog: ItemCatalog,
    bundles: Sequence[Bundle],
    *,
    steps: int,
    seed: int,
) -> None:
    """Align the embeddings of the words that occur in titles; the norm of each stays what it was.

    Args:
        model: Its input embeddings are changed in place.
        processor: Tokenizes the titles.
        catalog: The items.
        bundles: Training bundles.
        steps: Optimizer steps.
        seed: Seed of the batches.
    """
    embeddings = model.get_input_embeddings().weight
    texts = [title and f" {title}" for title in catalog.titles]  # after a number or letter, as in a question
    tokenized = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    longest = max(map(len, tokenized), default=0)
    if not longest:
        return
    tokens = torch.tensor([ids + [-1] * (longest - len(ids)) for ids in tokenized])  # [num_items, longest]
    words = tokens[tokens >= 0].unique()
    table = nn.Parameter(embeddings.detach().float().clone())

    def embed(rows: torch.Tensor) -> torch.Tensor:
        ids = tokens[rows]
        shown = (ids >= 0).unsqueeze(-1)
        return (table[ids.clamp(min=0)] * shown).sum(1) / shown.sum(1).clamp(min=1)

    rng = np.random.default_rng(seed)
    members = [np.array(catalog.rows(bundle.items)) for bundle in bundles if len(bundle.items) >= 2]
    groups = [{"params": [table], "lr": 1e-2, "weight_decay": 0.01}]
    _minimize(lambda: _contrast(embed, members, rng), groups, steps, "aligning words")
    with torch.no_grad():
        norms = embeddings[words].float().norm(dim=-1, keepdim=True)
        embeddings[words] = (F.normalize(table[words], dim=-1) * norms).to(embeddings.dtype)


def align_items(
    model: BundleMLLMForCausalLM,
    catalog: ItemCatalog,
    questions: Sequence[Question],
    *,
    steps: int,
    seed: int,
    versions: CrossFitted | None = None,
    held_out: Collection[str] = (),
) -> None:
    """Train fusion, projector and matching in place to answer questions without the backbone.

    The loss is the cross-entropy of the answer among the options, by the cosine of the projected items with the mean
    of the partial bundle (temperature 0.1), and, where the model has a matching, by its scores as well.

    How far the matching is to trust these scores beside shared groups is learned before, by stacking: it is trained
    without the bundles that are held out, then `weigh` on them alone, and then the rest begins again with all bundles.

    Args:
        model: Its catalog holds the features, and those of the versions, if any.
        catalog: The items, in the same order.
        questions: Training questions; each step sees a random batch of them.
        steps: Optimizer steps.
        seed: Seed of the batches and of dropout.
        versions: Cross-fitted features of the questions' bundles.
        held_out: Ids of the bundles that are held out; none: all bundles serve both.
    """
    parts, matching = model.model, model.model.matching
    asked, rng = _Asked(questions, catalog, versions), np.random.default_rng(seed)

    def score(rows: torch.Tensor, *places: torch.Tensor, compares: bool = False) -> torch.Tensor:
        return -parts.match(rows, *places[:-1], compares=compares)[places[-1]].mean()

    def align(rows: torch.Tensor, *places: torch.Tensor) -> torch.Tensor:
        shown, options, of_shown, of_option, answer = places
        vectors = F.normalize(model.get_item_embeddings(rows).float(), dim=-1)
        bundle = vectors.new_zeros(len(answer), vectors.shape[1]).index_add(0, of_shown, vectors[shown])
        cosines = (F.normalize(bundle, dim=-1)[of_option] * vectors[options]).sum(-1)
        of_cosines = -log_softmax_by(cosines / TEMPERATURE, of_option)[answer].mean()
        return of_cosines if matching is None else of_cosines + score(rows, *places)

    def fit(loss: Callable[..., torch.Tensor], groups: list[dict], steps: int, name: str, among: np.ndarray) -> None:
        model.requires_grad_(False)
        for parameter in chain.from_iterable(group["params"] for group in groups):
            parameter.requires_grad_(True)
        _minimize(lambda: loss(*asked.batch(rng.choice(among, BATCH_SIZE))), groups, steps, name)

    everything, groups = np.arange(len(questions)), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if matching is not None:
            groups = [{"params": matching.feature_parameters(), "lr": 2e-3, "weight_decay": 0.05}]
        if matching is not None and matching.weigh is not None:
            seen, unseen = _part(questions, held_out)
            rows, *places, _ = asked.batch(unseen[:FITTED_TO])
            matching.fit_statistics(parts.compare(rows, parts.catalog.gather(rows)[1], *places))
            begin = [parameter.detach().clone() for parameter in groups[0]["params"]]
            model.train()
            fit(score, groups, steps, "matching", seen)
            model.eval()  # no dropout: what is weighed are the scores as they will be
            weighing = [{"params": [*matching.weigh.parameters()], "lr": 2e-3, "weight_decay": 0.05}]
            fit(partial(score, compares=True), weighing, steps // 2, "weighing", unseen)
            for parameter, value in zip(groups[0]["params"], begin, strict=True):
                parameter.data.copy_(value)
        model.train()
        of_items = [*parts.fusion.parameters(), *parts.projector.parameters()]
        groups = [{"params": of_items, "lr": 1e-3, "weight_decay": 0.01}, *groups]
        fit(align, groups, steps, "aligning items", everything)
        model.eval()


def _part(questions: Sequence[Question], held_out: Collection[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of questions about other bundles, and about those held out; all twice if one has none."""
    is_held_out = np.array([question.bundle_id in held_out for question in questions])
    if is_held_out.all() or not is_held_out.any():
        return (np.arange(len(questions)),) * 2
    return (~is_held_out).nonzero()[0], is_held_out.nonzero()[0]


class _Asked:
    """Questions as rows of the catalog, those of their bundles' versions included."""

    def __init__(self, questions: Sequence[Question], catalog: ItemCatalog, versions: CrossFitted | None):
        self.shown, self.options = [], []
        self.answers = [question.answer_index for question in questions]
        for question in questions:
            shift = row_shift(question.bundle_id, versions, len(catalog))
            self.shown.append(np.array(catalog.rows(question.partial)) + shift)
            self.options.append(np.array(catalog.rows(question.candidates)) + shift)

    def batch(self, chosen: Sequence[int] | np.ndarray) -> tuple[torch.Tensor, ...]:
        """Return the rows of some questions, each once, the places to `match` them, and the answers' places."""
        lists = (self.shown, self.options)
        sizes = [[len(rows[index]) for index in chosen] for rows in lists]
        of_shown, of_option = (torch.arange(len(chosen)).repeat_interleave(torch.tensor(size)) for size in sizes)
        ids = torch.from_numpy(np.concatenate([rows[index] for rows in lists for index in chosen]))
        rows, places = ids.unique(return_inverse=True)
        shown, options = places.split([len(of_shown), len(of_option)])
        answers = torch.tensor([self.answers[index] for index in chosen])
        return rows, shown, options, of_shown, of_option, torch.tensor([0, *sizes[1][:-1]]).cumsum(0) + answers


def _contrast(
    embed: Callable[[torch.Tensor], torch.Tensor], members: Sequence[np.ndarray], rng: np.random.Generator
) -> torch.Tensor:
    """Return InfoNCE of a random batch of bundles, given the rows of each bundle's items."""
    shown = np.full((BATCH_SIZE, MAX_SHOWN), -1)
    targets = np.empty(BATCH_SIZE, dtype=np.int64)
    chosen = rng.integers(len(members), size=BATCH_SIZE)
    for row, index in enumerate(chosen):
        items = rng.permutation(members[index])[: MAX_SHOWN + 1]
        count = rng.integers(1, len(items))
        targets[row] = items[0]
        shown[row, :count] = items[1 : count + 1]
    rows, inverse = np.unique(np.concatenate([shown.ravel(), targets]), return_inverse=True)
    vectors = embed(torch.from_numpy(np.maximum(rows, 0)))[torch.from_numpy(inverse)]
    vectors = F.normalize(vectors.float(), dim=-1)
    is_shown = torch.from_numpy(shown >= 0).unsqueeze(-1)
    queries = (vectors[: shown.size].view(*shown.shape, -1) * is_shown).sum(1)
    logits = F.normalize(queries, dim=-1) @ vectors[shown.size :].T / TEMPERATURE  # [batch, batch]
    in_same_bundle = torch.from_numpy(chosen[:, None] == chosen) | torch.from_numpy(targets[:, None] == targets)
    in_same_bundle.fill_diagonal_(False)
    return F.cross_entropy(logits.masked_fill(in_same_bundle, -torch.inf), torch.arange(BATCH_SIZE))


def _minimize(loss: Callable[[], torch.Tensor], groups: list[dict[str, Any]], steps: int, name: str) -> None:
    """Take optimizer steps down a loss, each group with its own highest learning rate and weight decay."""
    optimizer = torch.optim.AdamW([dict(group) for group in groups])  # it writes into what it is given
    rates = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=max(2, steps), pct_start=0.1)
    for _ in tqdm(range(steps), desc=name):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
