"""Whole-catalog retrieval against a plain matrix product and top-k over the same columns, in one run.

    python benchmarks/retrieval.py --num-items 254155

Both find the best 100 items exactly. The retriever also counts shared groups and runs its stacker.
"""

import argparse
import statistics

import torch
from common import paired, ratio

from bundle_mllm.modeling import BundleRetriever, BundleRetrieverConfig
from bundle_mllm.modeling.groups_bundle_mllm import ItemPairs

MODALITIES = {"textual": 128, "visual": 128}
TOP_K = 100


def invent(num_items: int, pairs_per_item: int, seed: int) -> BundleRetriever:
    """Return a retriever of random weights over an invented catalog: groups of 2 to 40 items, popular ones in many."""
    generator = torch.Generator().manual_seed(seed)
    config = BundleRetrieverConfig(modalities=MODALITIES, memberships={"bundle_item": 0, "user_item": 0})
    model = BundleRetriever(config).eval()
    features = {name: torch.randn(num_items, width, generator=generator) for name, width in MODALITIES.items()}
    memberships = {}
    for name in config.memberships or ():
        sizes = torch.randint(2, 41, (num_items * pairs_per_item // 21,), generator=generator)
        groups = torch.arange(len(sizes)).repeat_interleave(sizes)
        popular = torch.rand(len(groups), generator=generator).pow(2)  # half of the pairs: a quarter of the items
        memberships[name] = ItemPairs((popular * num_items).long().clamp(max=num_items - 1), groups)
    model.set_catalog(features, memberships=memberships, fit_statistics=True)
    return model


@torch.inference_mode()
def main() -> None:
    """Measure one question, and batches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-items", type=int, default=254_155)
    parser.add_argument("--pairs-per-item", type=int, default=5)
    parser.add_argument("--partial", type=int, default=4, help="items of a partial bundle")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = invent(arguments.num_items, arguments.pairs_per_item, arguments.seed)
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
        seconds = paired(calls, repeats)
        plain, ours = (statistics.median(seconds[name]) for name in calls)
        print(
            f"batch {batch:3}: plain {plain:.4f} s, retriever {ours:.4f} s, "
            f"ratio {ratio(seconds, 'retriever', 'plain'):.2f}"
        )


if __name__ == "__main__":
    main()
