"""Ranking a long list in groups, with the beginning that its prompts share read once, against reading it in each.

    python benchmarks/prefix.py --threads 1

The ranker is a 4-layer, 256-wide Llama with random weights; titles are four words. Prints the median of the ratios,
taken pair by pair, for several lengths of the partial bundle and of the list. With one thread, times are CPU times.
"""

from __future__ import annotations

import argparse
import time
from unittest.mock import patch

import torch
from common import make_model, make_processor, paired, ratio

from bundle_mllm.modeling import prefix_bundle_mllm
from bundle_mllm.modeling.scoring_bundle_mllm import RankerScorer

NUM_ITEMS = 2_000


@torch.inference_mode()
def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    processor = make_processor(NUM_ITEMS)
    scorer = RankerScorer(make_model(NUM_ITEMS, processor).eval(), processor, batch_size=32)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    for partial in (2, 4, 10):
        for candidates in (50, 100, 300):
            ids = [f"i{row}" for row in torch.randperm(NUM_ITEMS)[: partial + candidates].tolist()]
            question = {"partial": ids[:partial], "candidates": ids[partial:]}

            def once(question: dict = question) -> list:
                return scorer.in_groups([question], 10)

            def in_each(question: dict = question) -> list:
                with patch.object(prefix_bundle_mllm, "LEAST_SHARE", 2):
                    return scorer.in_groups([question], 10)

            seconds = paired({"once": once, "in each": in_each}, arguments.rounds, warmup=1, clock=clock)
            share = ratio(seconds, "once", "in each")
            print(f"{partial:2} items shown, {candidates:3} candidates: once / in each  {share:.2f}", flush=True)


if __name__ == "__main__":
    main()
