"""Whole-catalog retrieval against a plain matrix product and top-k over the same columns, in one run.

    python benchmarks/retrieval.py --num-items 254155
    python benchmarks/retrieval.py --num-items 1000000 --threads 1 --approximate

Both find the best 100 items exactly. The retriever also counts shared groups and runs its stacker. With --approximate,
the retriever is also compared with itself over an index (faiss), whose recall is printed; features are drawn around
2,000 centers then, since an index of features without any structure serves nobody.
"""

import argparse
import statistics
import time

import torch
from common import paired, ratio

from bundle_mllm.encoders.attributes import MAX_GROUP_SIZE
from bundle_mllm.modeling import BundleRetriever, BundleRetrieverConfig
from bundle_mllm.modeling.groups_bundle_mllm import ItemPairs

MODALITIES = {"textual": 128, "visual": 128}
TOP_K = 100


def invent(
    num_items: int, pairs_per_item: int, seed: int, num_attributes: int = 0, num_centers: int = 0
) -> BundleRetriever:
    """Return a retriever of random weights over an invented catalog: groups of 2 to 40 items, popular ones in many.

    With attributes, each item has so many names besides (a brand, tags), of which the frequent ones are in most items:
    the k-th name of a column is in a share of 1/k of those of the first. Names of too many items are no groups.
    """
    generator = torch.Generator().manual_seed(seed)
    names = ("bundle_item", "user_item", *(("attributes",) if num_attributes else ()))
    config = BundleRetrieverConfig(modalities=MODALITIES, memberships=dict.fromkeys(names, 0))
    model = BundleRetriever(config).eval()
    features = {name: torch.randn(num_items, width, generator=generator) for name, width in MODALITIES.items()}
    if num_centers:
        center = torch.randint(num_centers, (num_items,), generator=generator)
        for name, width in MODALITIES.items():
            features[name] = 0.5 * features[name] + torch.randn(num_centers, width, generator=generator)[center]
    memberships = {}
    for name in names[:2]:
        sizes = torch.randint(2, 41, (num_items * pairs_per_item // 21,), generator=generator)
        groups = torch.arange(len(sizes)).repeat_interleave(sizes)
        popular = torch.rand(len(groups), generator=generator).pow(2)  # half of the pairs: a quarter of the items
        memberships[name] = ItemPairs((popular * num_items).long().clamp(max=num_items - 1), groups)
    if num_attributes:
        num_names = num_items // 50
        share = 1 / torch.arange(1, num_names + 1)
        drawn = torch.multinomial(share, num_items * num_attributes, replacement=True, generator=generator)
        groups = drawn + num_names * (torch.arange(len(drawn)) % num_attributes)
        kept = groups.bincount()[groups] <= MAX_GROUP_SIZE
        memberships["attributes"] = ItemPairs((torch.arange(len(drawn)) // num_attributes)[kept], groups[kept])
    model.set_catalog(features, memberships=memberships, fit_statistics=True)
    return model


@torch.inference_mode()
def main() -> None:
    """Measure one question, and batches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-items", type=int, default=254_155)
    parser.add_argument("--pairs-per-item", type=int, default=5)
    parser.add_argument("--attributes", type=int, default=0, help="names of an item, such as a brand and tags")
    parser.add_argument("--approximate", action="store_true", help="compare with an index, too")
    parser.add_argument("--partial", type=int, default=4, help="items of a partial bundle")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    centers = 2_000 if arguments.approximate else 0
    model = invent(arguments.num_items, arguments.pairs_per_item, arguments.seed, arguments.attributes, centers)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    search = None
    if arguments.approximate:
        from bundle_mllm.completion.approximate import RECALL_AT, ApproximateIndex

        start = clock()
        index = ApproximateIndex(model)
        print(f"index made and measured in {clock() - start:.0f} s; recall@{RECALL_AT} {index.recall:.3f}")
        search = index.search()
    items = model.index.items
    generator = torch.Generator().manual_seed(arguments.seed + 1)
    print(f"{len(items)} items x {items.shape[1]} columns, {torch.get_num_threads()} threads; seconds are medians")
    for batch in (1, 64):
        popular = torch.rand(batch, arguments.partial, generator=generator).pow(2)
        partial = (popular * arguments.num_items).long()
        query = torch.randn(batch, items.shape[1], generator=generator)
        repeats = arguments.repeats if batch == 1 else max(3, arguments.repeats // 3)
        calls = {
            "plain": lambda query=query: (query @ items.T).topk(TOP_K),
            "retriever": lambda partial=partial: model.retrieve(partial, TOP_K),
        }
        if search is not None:
            calls["index"] = lambda partial=partial: model.catalog_scores(partial, search=search).topk(TOP_K)
        seconds = paired(calls, repeats, clock=clock)
        plain, ours = (statistics.median(seconds[name]) for name in ("plain", "retriever"))
        print(
            f"batch {batch:3}: plain {plain:.4f} s, retriever {ours:.4f} s, "
            f"ratio {ratio(seconds, 'retriever', 'plain'):.2f}"
        )
        if search is not None:
            of_index = statistics.median(seconds["index"])
            print(f"           index {of_index:.4f} s, index / retriever {ratio(seconds, 'index', 'retriever'):.2f}")


if __name__ == "__main__":
    main()
