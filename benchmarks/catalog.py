"""A question about a whole catalog under rules, against its two unavoidable parts, in one run.

    python benchmarks/catalog.py --num-items 254155 --threads 1

The parts are retrieval of the best 100 items alone, and one forward pass of the prompt that the ranker is then asked,
ready tokenized. Ours also applies rules (a condition, exclusions, boost, two of a category, variants once, a budget),
writes and tokenizes the prompt of 26 options, joins the scores and selects ten answers. Target: at most 1.3 times the
sum of the parts. The ranker is a 4-layer, 256-wide Llama with random weights: a larger one brings the ratio nearer to
1. Also prints the resident memory, to compare catalogs of several sizes. With one thread, times are CPU times of this
process, which other programs hardly change.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from common import make_backbone, make_processor, paired
from retrieval import MODALITIES, TOP_K, invent

from bundle_mllm.completion.columns import ItemColumns
from bundle_mllm.completion.complete import RuledCompleter
from bundle_mllm.completion.rules import Rules
from bundle_mllm.modeling import BundleCompleter, BundleMLLMForCausalLM

RULES = Rules(
    where='in_stock == true and price <= 80 and category != "c7"',
    excluded=("i1", "i2", "i3"),
    max_per_category=2,
    variant_column="handle",
    budget=300.0,
    boost={"margin": 0.3},
)
NUM_ANSWERS = 10


def make_columns(item_ids: tuple[str, ...], seed: int) -> ItemColumns:
    """Prices, stock, 200 categories, and products of two variants."""
    rng, number = np.random.default_rng(seed), len(item_ids)
    cells = {
        "item_id": list(item_ids),
        "price": np.round(np.exp(rng.normal(3, 1, number)), 2).tolist(),
        "in_stock": (rng.random(number) < 0.8).tolist(),
        "category": [f"c{code}" for code in rng.integers(0, 200, number)],
        "handle": [f"h{row // 2}" for row in range(number)],
        "margin": rng.normal(size=number).tolist(),
    }
    return ItemColumns(number, "the invented table", 0, cells)


def resident_mib() -> float:
    """Return the resident memory of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


@torch.inference_mode()
def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-items", type=int, default=254_155)
    parser.add_argument("--attributes", type=int, default=0, help="names of an item, such as a brand and tags")
    parser.add_argument("--partial", type=int, default=4, help="items of a partial bundle")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    before = resident_mib()
    retriever = invent(arguments.num_items, 5, arguments.seed, arguments.attributes)
    processor = make_processor(arguments.num_items)
    ranker = BundleMLLMForCausalLM.from_backbone(
        make_backbone(), modalities=MODALITIES, separator_token_id=processor.separator_token_id
    ).eval()
    ranker.set_catalog(retriever.catalog_rows()["features"])
    completer = BundleCompleter(processor, ranker, retriever)
    rules = RULES.apply(processor.item_ids, make_columns(processor.item_ids, arguments.seed))
    shop = RuledCompleter(completer, rules)
    generator = torch.Generator().manual_seed(arguments.seed + 1)
    rows = (torch.rand(arguments.partial, generator=generator).pow(2) * arguments.num_items).long()
    question = {"partial": [processor.item_ids[row] for row in rows.tolist()]}
    answers = shop.complete([question], top_k=NUM_ANSWERS)[0]
    print(f"{arguments.num_items} items, {int(rules.allowed.sum())} allowed; {torch.get_num_threads()} threads")
    print(f"resident memory {resident_mib() - before:.0f} MiB; {len(answers.items)} answers {answers.notes}")
    shown = shop.ranked_items(question, NUM_ANSWERS)
    prompt = processor([{**question, "candidates": shown}], return_tensors="pt")
    calls = {
        "retrieval": lambda: retriever.retrieve(rows[None], TOP_K),
        "forward": lambda: ranker.last_logits(**prompt),
        "ours": lambda: shop.complete([question], top_k=NUM_ANSWERS),
    }
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    seconds = paired(calls, arguments.rounds, clock=clock)
    parts = [a + b for a, b in zip(seconds["retrieval"], seconds["forward"], strict=True)]
    for name, times in seconds.items():
        print(f"{name:10} median {statistics.median(times) * 1e3:.1f} ms")
    ratio = statistics.median(ours / both for ours, both in zip(seconds["ours"], parts, strict=True))
    print(f"ours / (retrieval + forward pass of {prompt['input_ids'].shape[1]} tokens)  {ratio:.2f}")


if __name__ == "__main__":
    main()
