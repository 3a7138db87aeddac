"""Questions per second of the ranker at the shapes of large backbones, against the same shapes in stock transformers.

    python benchmarks/gpu/throughput.py --shape 0.6B --output throughput_0.6B.json     # 7B: one GPU of 40 GiB or more
    python benchmarks/gpu/throughput.py --shape toy --device cpu                       # checks the script

Random weights in bfloat16, K = 10 and 26 options, prompts of the length that real titles make. Scoring is one forward
pass for the letters (ours), and one with the logits of the last position (stock). A training step has LoRA on queries
and values and reads the two positions of the answer (ours), or computes the loss over all positions as a plain trainer
does (stock). The two sides of each pair take turns. Prints JSON; `--output` also writes it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from bundle_mllm.device import choose_device, peak_memory
from bundle_mllm.modeling import BundleMLLMForCausalLM

SHAPES = {  # hidden, intermediate, layers, heads, key-value heads, vocabulary
    "toy": (64, 128, 2, 4, 2, 512),
    "0.6B": (1024, 3072, 28, 16, 8, 151_936),
    "7B": (4096, 11_008, 32, 32, 32, 32_000),
}
MODALITIES = {"visual": 512, "bundle_item": 64}
TOKENS_PER_ITEM, NUM_SHOWN, NUM_ITEMS = 27, 3, 10_000


def make_backbone(shape: str, device: torch.device) -> LlamaForCausalLM:
    """Make a Llama of a shape, with random weights in bfloat16 on the device."""
    hidden, intermediate, layers, heads, kv_heads, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=vocabulary > 100_000,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def median_seconds(calls: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Time calls in turn and return the median of each, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


def measure(shape: str, num_options: int, batch_size: int, rounds: int, device: torch.device) -> dict[str, float]:
    """Return questions per second of scoring and training, and our share of the stock model's time."""
    stock = make_backbone(shape, device)
    ours = BundleMLLMForCausalLM.from_backbone(make_backbone(shape, device), modalities=MODALITIES)
    ours.set_catalog({name: torch.randn(NUM_ITEMS, width) for name, width in MODALITIES.items()})
    ours.to(device)
    vocabulary, num_read = stock.config.vocab_size, NUM_SHOWN + num_options
    text = torch.randint(3, vocabulary, (batch_size, num_read * TOKENS_PER_ITEM + 30), device=device)
    items = text.clone()  # each item ends with its item token
    rows = torch.randint(NUM_ITEMS, (batch_size, num_read), device=device)
    items[:, TOKENS_PER_ITEM * torch.arange(1, num_read + 1)] = ours.config.item_token_offset + rows
    letters = torch.arange(3, 3 + num_options, device=device)
    mask = torch.ones_like(text)

    @torch.inference_mode()
    def score_ours() -> None:
        _ = ours.last_logits(items, mask)[:, letters]

    @torch.inference_mode()
    def score_stock() -> None:
        _ = stock(input_ids=text, attention_mask=mask, logits_to_keep=1).logits[:, -1, letters]

    scoring = median_seconds({"ours": score_ours, "stock": score_stock}, rounds, device)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    trained_ours, trained_stock = get_peft_model(ours, lora).train(), get_peft_model(stock, lora).train()
    kept = torch.arange(text.shape[1] - 3, text.shape[1] - 1, device=device).expand(batch_size, -1)
    labels = torch.full_like(text, -100)
    labels[:, -2:] = text[:, -2:]

    def step_ours() -> None:
        loss = trained_ours(
            input_ids=torch.cat([items[:, :-2], text[:, -2:]], dim=1),
            attention_mask=mask,
            positions_to_keep=kept,
            labels=labels,
            shift_labels=text[:, -2:].contiguous(),
        ).loss
        loss.backward()
        trained_ours.zero_grad()

    def step_stock() -> None:
        trained_stock(input_ids=text, attention_mask=mask, labels=labels).loss.backward()
        trained_stock.zero_grad()

    training = median_seconds({"ours": step_ours, "stock": step_stock}, rounds, device)
    return {
        "num_options": num_options,
        "tokens": text.shape[1],
        "scoring_questions_per_second": batch_size / scoring["ours"],
        "scoring_ours_over_stock": scoring["ours"] / scoring["stock"],
        "training_questions_per_second": batch_size / training["ours"],
        "training_ours_over_stock": training["ours"] / training["stock"],
        "peak_memory_gib": peak_memory(),
    }


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="0.6B")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    device = choose_device(args.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    rows = [measure(args.shape, k, args.batch_size, args.rounds, device) for k in (10, 26)]
    text = json.dumps({"shape": args.shape, "device": name, "batch_size": args.batch_size, "rows": rows}, indent=1)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
