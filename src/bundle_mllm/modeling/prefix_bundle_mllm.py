"""Read prompts that begin alike: the tokens that they share are read once, and their keys and values serve them all.

Knows nothing about questions, letters or where prompts come from.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from .modeling_bundle_mllm import CACHE

LEAST_PROMPTS, LEAST_SHARE = 4, 0.2
"""Of fewer prompts, or with a smaller share of shared tokens, a second pass costs what it saves (measured)."""


def last_logits(
    ranker: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], extra_items: dict[str, Any] | None = None
) -> torch.Tensor:
    """Return the logits of the whole vocabulary at the end of each prompt, `[num_prompts, vocab_size]`.

    Args:
        ranker: A `BundleMLLMForCausalLM`, or an adapter of one.
        tokenizer: Pads.
        prompts: The tokens of each prompt.
        extra_items: Items of this call only; see `BundleMLLMItemCatalog.gather`.
    """
    alike = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False))
    shared = min(sum(1 for _ in alike), min(map(len, prompts)) - 1)
    cache = None
    if len(prompts) >= LEAST_PROMPTS and shared >= LEAST_SHARE * max(map(len, prompts)):
        cache = _cache_of(ranker, prompts[0][:shared], len(prompts), extra_items)
    if cache is None:
        shared = 0
    rest = {"input_ids": [list(prompt[shared:]) for prompt in prompts]}
    batch = tokenizer.pad(rest, return_tensors="pt").to(ranker.device)
    mask = torch.cat([batch["attention_mask"].new_ones(len(prompts), shared), batch["attention_mask"]], dim=1)
    cached = {} if cache is None else {CACHE: cache, "use_cache": True}
    return ranker.last_logits(batch["input_ids"], mask, extra_items=extra_items, **cached)


def _cache_of(
    ranker: Any, tokens: Sequence[int], number: int, extra_items: dict[str, Any] | None
) -> DynamicCache | None:
    """Return keys and values of tokens for so many prompts; `None` where a backbone keeps something else, too."""
    cache = DynamicCache(config=ranker.config.get_text_config())
    if any(type(layer) is not DynamicLayer for layer in cache.layers):  # of sliding windows, or recurrent
        return None
    ids = torch.tensor([tokens], device=ranker.device)
    ranker.model(input_ids=ids, extra_items=extra_items, **{CACHE: cache, "use_cache": True})
    if cache.get_seq_length() != len(tokens):
        return None
    cache.batch_repeat_interleave(number)
    return cache
