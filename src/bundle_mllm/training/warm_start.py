"""Initialize a backbone without pretraining: items of one bundle begin with similar embeddings (ours).

Knows nothing about prompts or the backbone's layers.

The embeddings of a pretrained LLM associate "linen" with "sandals"; random ones do not, and learning it through the
answers of multiple-choice questions is slow. A warm start learns it directly: the mean embedding of some items of a
training bundle should be closer (by cosine) to an item of the same bundle than to other items (temperature 0.1). For
words an item is the mean of its title's tokens; for item tokens it is what fusion and projector make of its features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bundle_mllm.data.bundles import Bundle
from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.training.optimize import minimize, training_only
from bundle_mllm.training.out_of_fold import QuestionRows

if TYPE_CHECKING:
    from bundle_mllm.model_folder import Ranker
    from bundle_mllm.modeling.modeling_bundle_mllm import BundleMLLMForCausalLM
    from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor

TEMPERATURE = 0.1
BATCH_SIZE = 256
MAX_SHOWN = 4


def warm_start_words(
    model: BundleMLLMForCausalLM,
    processor: BundleMLLMProcessor,
    catalog: ItemCatalog,
    bundles: Sequence[Bundle],
    *,
    steps: int,
    seed: int,
) -> None:
    """Bring the words of one bundle's titles together (InfoNCE within a batch); the norm of each stays what it was.

    The model's input embeddings are changed in place; the seed is that of the batches.
    """
    tokenizer: Any = processor.tokenizer
    embeddings: Any = model.get_input_embeddings().weight
    escaped = [tokenizer.escape(title) for title in catalog.titles]
    texts = [title and f" {title}" for title in escaped]  # after a number or letter, as in a question
    tokenized = tokenizer(texts, add_special_tokens=False)["input_ids"]
    longest = max(map(len, tokenized), default=0)
    members = [np.array(catalog.rows(bundle.items)) for bundle in bundles if len(bundle.items) >= 2]
    if not longest or not members:
        return
    tokens = torch.tensor([ids + [-1] * (longest - len(ids)) for ids in tokenized])  # [num_items, longest]
    words = tokens[tokens >= 0].unique()
    table = nn.Parameter(embeddings.detach().float().clone())

    def embed(rows: torch.Tensor) -> torch.Tensor:
        ids = tokens[rows]
        is_token = (ids >= 0).unsqueeze(-1)
        return (table[ids.clamp(min=0)] * is_token).sum(1) / is_token.sum(1).clamp(min=1)

    rng = np.random.default_rng(seed)
    minimize(lambda: _info_nce(embed, members, rng), [table], steps, "warm start of words", lr=1e-2, weight_decay=0.01)
    with torch.no_grad():
        norms = embeddings[words].float().norm(dim=-1, keepdim=True)
        embeddings[words] = (functional.normalize(table[words], dim=-1) * norms).to(embeddings.dtype)


def warm_start_items(model: Ranker, rows: QuestionRows, *, steps: int, seed: int) -> None:
    """Bring the item tokens of one bundle together: cross-entropy of the answer among the options of a question.

    The model's fusion and projector are changed in place; each step takes a random batch of the questions.
    """
    generator = torch.Generator().manual_seed(seed)

    def loss() -> torch.Tensor:
        partial, options, answers = rows.batch(torch.randint(len(rows), (BATCH_SIZE,), generator=generator))
        ids, index = torch.cat([partial, options], dim=1).clamp(min=0).unique(return_inverse=True)
        vectors = functional.normalize(model.model.get_item_embeddings(ids).float(), dim=-1)
        of_partial, of_options = vectors[index].split([partial.shape[1], options.shape[1]], dim=1)
        bundle = (of_partial * (partial >= 0).unsqueeze(-1)).sum(dim=1, keepdim=True)
        cosines = (functional.normalize(bundle, dim=-1) * of_options).sum(dim=-1)  # [batch, max_options]
        return functional.cross_entropy((cosines / TEMPERATURE).masked_fill(options < 0, -torch.inf), answers)

    parameters = [*model.model.fusion.parameters(), *model.model.projector.parameters()]
    with training_only(model, parameters, seed):
        minimize(loss, parameters, steps, "warm start of item tokens", lr=1e-3, weight_decay=0.01)


def _info_nce(
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
    vectors = functional.normalize(vectors.float(), dim=-1)
    is_shown = torch.from_numpy(shown >= 0).unsqueeze(-1)
    queries = (vectors[: shown.size].view(*shown.shape, -1) * is_shown).sum(1)
    logits = functional.normalize(queries, dim=-1) @ vectors[shown.size :].T / TEMPERATURE  # [batch, batch]
    in_same_bundle = torch.from_numpy(chosen[:, None] == chosen) | torch.from_numpy(targets[:, None] == targets)
    in_same_bundle.fill_diagonal_(False)
    return functional.cross_entropy(logits.masked_fill(in_same_bundle, -torch.inf), torch.arange(BATCH_SIZE))
