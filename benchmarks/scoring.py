"""Scoring a batch of questions against one stock forward pass with `logits_to_keep=1`.

    python benchmarks/scoring.py [--rounds 25]

16 questions of 13 items on a 4-layer, 256-wide Llama with a vocabulary of 32,000. Prints ratios of medians taken pair
by pair within this run: ours over stock (target: at most 1.05), and ours at 100,000 over 1,000 items (1 ± .05).
"""

from __future__ import annotations

import argparse

import torch
from common import as_text_ids, make_backbone, make_model, make_processor, make_prompts, paired, ratio


@torch.inference_mode()
def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    calls = {}
    for num_items in (1_000, 100_000):
        processor = make_processor(num_items)
        prompts = make_prompts(processor, num_items)
        ids, mask = torch.tensor(prompts), torch.ones(len(prompts), len(prompts[0]), dtype=torch.long)
        model = make_model(num_items, processor).eval()
        calls[f"ours, {num_items:,} items"] = lambda m=model, i=ids, a=mask: m.last_logits(i, a)
    stock, text = make_backbone().eval(), torch.tensor(as_text_ids(prompts))
    calls["stock"] = lambda: stock(input_ids=text, attention_mask=mask, logits_to_keep=1, use_cache=False).logits
    seconds = paired(calls, args.rounds)
    for name, times in seconds.items():
        print(f"{name:22} median {sorted(times)[len(times) // 2] * 1e3:.1f} ms")
    print(f"ours / stock                  {ratio(seconds, 'ours, 1,000 items', 'stock'):.3f}")
    print(f"100,000 items / 1,000 items   {ratio(seconds, 'ours, 100,000 items', 'ours, 1,000 items'):.3f}")


if __name__ == "__main__":
    main()
