"""What the benchmarks share: a small Llama, questions of 13 items, catalogs of any size, paired timing, memory."""

from __future__ import annotations

import statistics
import string
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bundle_mllm.modeling import BundleMLLMForCausalLM, BundleMLLMProcessor

VOCAB_SIZE, NUM_QUESTIONS, NUM_SHOWN, NUM_OPTIONS = 32_000, 16, 3, 10
MODALITIES = {"visual": 512, "acoustic": 512, "user_item": 64, "bundle_item": 64}


def make_backbone() -> LlamaForCausalLM:
    """Four layers, 256 wide, vocabulary 32,000, random weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
        )
    )


def make_processor(num_items: int) -> BundleMLLMProcessor:
    """Items whose titles are four words of one token each."""
    words = ["<pad>", "</s>", "<unk>", *string.punctuation, "\n", *string.ascii_uppercase, *map(str, range(2_000))]
    words += ["Which", "item", "completes", "the", "bundle", "Bundle", "Options", "Answer"]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(words))}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Punctuation()]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    titles = [" ".join(str((row * prime) % 2_000) for prime in (1, 7, 31, 101)) for row in range(num_items)]
    return BundleMLLMProcessor.from_backbone_tokenizer(fast, [f"i{row}" for row in range(num_items)], titles)


def make_model(num_items: int, processor: BundleMLLMProcessor) -> BundleMLLMForCausalLM:
    """Wrap a fresh backbone over a catalog of random features."""
    model = BundleMLLMForCausalLM.from_backbone(
        make_backbone(), modalities=MODALITIES, separator_token_id=processor.separator_token_id
    )
    features = {name: torch.randn(num_items, width) for name, width in MODALITIES.items()}
    model.set_catalog(features)
    return model


def make_prompts(
    processor: BundleMLLMProcessor, num_items: int, num_questions: int = NUM_QUESTIONS
) -> list[list[int]]:
    """Prompts of equal length."""
    generator = torch.Generator().manual_seed(1)
    prompts = []
    for _ in range(num_questions):
        ids = [f"i{row}" for row in torch.randperm(num_items, generator=generator)[: NUM_SHOWN + NUM_OPTIONS].tolist()]
        prompts += processor([{"partial": ids[:NUM_SHOWN], "candidates": ids[NUM_SHOWN:]}])["input_ids"]
    return prompts


def as_text_ids(prompts: list[list[int]]) -> list[list[int]]:
    """Replace item ids and the separator by ordinary tokens: the same lengths for the stock model."""
    return [[token if token < VOCAB_SIZE else 5 for token in prompt] for prompt in prompts]


def paired(
    calls: dict[str, Callable[[], object]],
    rounds: int,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time calls in turn, A B C A B C …, so that a drift of the machine's speed meets all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warmup + rounds):
        for name, call in calls.items():
            start = clock()
            call()
            if number >= warmup:
                seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, baseline: str) -> float:
    """Return the median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[baseline], strict=True))


def peak_memory_mib(call: Callable[[], object]) -> float:
    """Return how far resident memory rises above its present level while a call runs (Linux)."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def read(field: str) -> int:
        return int(next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1])

    clear.write_text("5")  # resets the high-water mark
    before = read("VmRSS")
    call()
    return (read("VmHWM") - before) / 1024
