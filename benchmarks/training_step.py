"""A training step of Bundle-MLLM against the same step of the stock `LlamaForCausalLM`, both under TRL.

    python benchmarks/training_step.py [--rounds 15]

One step is forward and backward of 16 questions of 13 items with LoRA (query, value) on a 4-layer, 256-wide Llama
with a vocabulary of 32,000; completion-only loss; sequences of the same length for both. Prints ratios of medians
taken pair by pair within this run: ours over stock (target: at most 1.05), and ours at 100,000 over 1,000 items
(1 ± .05). Memory is what a step adds to the resident memory before it, each measured in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from common import as_text_ids, make_backbone, make_model, make_processor, make_prompts, paired, peak_memory_mib, ratio
from datasets import Dataset
from peft import LoraConfig
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

VARIANTS = {"stock": 1_000, "ours, 1,000 items": 1_000, "ours, 100,000 items": 100_000}


def make_step(name: str) -> Callable[[], object]:
    """Return forward and backward pass as TRL computes them, on one fixed batch."""
    num_items = VARIANTS[name]
    processor = make_processor(num_items)
    prompts = make_prompts(processor, num_items)
    model = make_backbone() if name == "stock" else make_model(num_items, processor)
    prompts = as_text_ids(prompts) if name == "stock" else prompts
    letters = processor.answer_token_ids(10)
    answers = [[letters[i % 10], processor.tokenizer.eos_token_id] for i in range(len(prompts))]
    rows = Dataset.from_dict(
        {
            "input_ids": [p + a for p, a in zip(prompts, answers, strict=True)],
            "labels": [[-100] * len(p) + a for p, a in zip(prompts, answers, strict=True)],
        }
    )
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=len(prompts),
            activation_checkpointing=False,
            report_to="none",
            bf16=False,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=rows,
        processing_class=processor.tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"]),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trained: Any = trainer.model
    trained.train()

    def step() -> None:
        trainer.compute_loss(trained, dict(batch)).backward()
        trained.zero_grad(set_to_none=True)

    return step


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        step = make_step(args.memory_of)
        step()
        print(peak_memory_mib(step))
        return
    seconds = paired({name: make_step(name) for name in VARIANTS}, args.rounds)
    for name, times in seconds.items():
        command = [sys.executable, __file__, "--memory-of", name, "--threads", str(args.threads)]
        memory = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
        print(f"{name:22} median {sorted(times)[len(times) // 2]:.3f} s   step memory {float(memory):7.1f} MiB")
    print(f"ours / stock                  {ratio(seconds, 'ours, 1,000 items', 'stock'):.3f}")
    print(f"100,000 items / 1,000 items   {ratio(seconds, 'ours, 100,000 items', 'ours, 1,000 items'):.3f}")


if __name__ == "__main__":
    main()
