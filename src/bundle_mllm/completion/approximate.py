"""Search catalogs of millions of items by an approximate index, and measure its recall.

Knows nothing about questions, rules or the ranker.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.modeling.completion_bundle_mllm import BundleCompleter
from bundle_mllm.modeling.retriever_bundle_mllm import BundleRetriever
from bundle_mllm.progress import note

Search = Callable[[torch.Tensor], torch.Tensor]
"""See `BundleRetriever.catalog_scores`."""
NUM_FOUND = 400
"""Items that a search returns for each question."""
WORTHWHILE = 1_000_000
"""Items from which on an index saves time that a user notices: below, an exact answer takes less than 0.15 s."""
NUM_PROBED = 32
"""Clusters that a search looks at, of which there are as many as the root of the number of items."""
NUM_MEASURED, RECALL_AT = 64, 100
"""Random partial bundles that recall is measured on, and how many of the best items of each."""


class ApproximateIndex:
    """Items by clusters of their vectors (inverted file; faiss, Douze et al., 2024), of which a search looks at few.

    Products are turned into distances by one more column (Bachrach et al., RecSys 2014), and vectors are kept in half
    precision; scores are computed from the exact vectors. Items that share a group with the partial bundle need no
    search: `BundleRetriever.catalog_scores` scores all of them.

    Args:
        retriever: Its items are indexed as they are now.
        seed: Chooses the items that clusters are made of, and what recall is measured on.

    Attributes:
        recall: Share of the best `RECALL_AT` items, by the exact scores, that are found: the mean of random partial
            bundles of three items.

    Raises:
        BundleMLLMError: If faiss is not installed.
    """

    def __init__(self, retriever: BundleRetriever, *, seed: int = 0):
        try:
            import faiss
        except ImportError as error:
            raise BundleMLLMError(
                'Approximate retrieval needs faiss: pip install "bundle-mllm[faiss]", or retrieve exactly, which a '
                "catalog of a million items takes 0.15 s for."
            ) from error
        self._faiss, self._retriever = faiss, retriever
        items = retriever.index.items.float().cpu().numpy()  # [num_items, D + 1]
        squares = np.einsum("nd,nd->n", items, items)
        vectors = np.concatenate([items, np.sqrt(squares.max() - squares)[:, None]], axis=1)
        num_clusters = max(1, math.isqrt(len(vectors)))
        width, metric = vectors.shape[1], faiss.METRIC_L2
        self._clusters = faiss.IndexFlat(width, metric)
        half = faiss.ScalarQuantizer.QT_fp16
        self._index = faiss.IndexIVFScalarQuantizer(self._clusters, width, num_clusters, half, metric)
        random = np.random.default_rng(seed)
        sample = random.choice(len(vectors), min(len(vectors), 50 * num_clusters), replace=False)
        self._index.cp.seed = seed
        self._index.train(vectors[np.sort(sample)])
        self._index.add(vectors)
        self.recall = self._measure(random)

    @classmethod
    def of(cls, completer: BundleCompleter) -> ApproximateIndex:
        """Index the items of a completer, and show the recall beside the progress.

        Raises:
            BundleMLLMError: If there is no retriever, or faiss is not installed.
        """
        if completer.retriever is None:
            raise BundleMLLMError(
                "Approximate retrieval searches the retriever's vectors, and this model has no retriever: add one "
                "(bundle-mllm retriever), or leave --retrieval out."
            )
        index = cls(completer.retriever)
        small = completer.processor.num_items < WORTHWHILE
        note(
            f"approximate retrieval finds {index.recall:.1%} of the best {RECALL_AT} items (mean of {NUM_MEASURED} "
            f"random partial bundles)" + f"; below {WORTHWHILE:,} items, exact retrieval takes little longer" * small
        )
        return index

    def search(self, allowed: np.ndarray | None = None) -> Search:
        """Return the `search` of `BundleRetriever.catalog_scores`, among the allowed items `[num_items]` (bool)."""
        options: dict[str, Any] = {"nprobe": NUM_PROBED}
        if allowed is not None and not allowed.all():
            bits = np.packbits(allowed, bitorder="little")
            options["sel"] = self._faiss.IDSelectorBitmap(bits)
        parameters = self._faiss.SearchParametersIVF(**options)

        def search(query: torch.Tensor) -> torch.Tensor:
            vectors = torch.nn.functional.pad(query, (0, 1)).float().cpu().numpy()
            _, rows = self._index.search(vectors, NUM_FOUND, params=parameters)
            return torch.from_numpy(rows)

        return search

    def _measure(self, random: np.random.Generator) -> float:
        num_items = self._index.ntotal
        shares = []
        for _ in range(NUM_MEASURED):
            partial = torch.from_numpy(random.choice(num_items, min(3, num_items), replace=False))[None]
            exact, found = (self._retriever.catalog_scores(partial, search=s)[0] for s in (None, self.search()))
            best = exact.topk(min(RECALL_AT, num_items)).indices
            best = best[exact[best] > -torch.inf]
            shares.append(float((found[best] > -torch.inf).float().mean()))
        return float(np.mean(shares))
