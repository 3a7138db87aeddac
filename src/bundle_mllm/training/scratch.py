"""A backbone that needs no download: a tokenizer from the catalog's text and a small Llama that can read a question.

Knows nothing about stages, features or files of a run.

The Llama's layers come with the package (`scratch.safetensors`, 1 MB; made by
`training_scripts/pretrain_scratch_backbone.py`). They were trained on random vectors in place of words and items, for
over an hour of CPU time, to answer a multiple-choice question: compare options with what is shown, choose a letter.
Every embedding but those of letters, digits and punctuation is random.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Iterator
from importlib.resources import as_file, files
from itertools import chain, repeat

import torch
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bundle_mllm.data.catalog import ItemCatalog
from bundle_mllm.modeling.processing_bundle_mllm import BundleMLLMProcessor

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
SEPARATOR = "<|item_separator|>"
EMBEDDING_STD = 0.1
"""Standard deviation of new embeddings: what the layers were pretrained on."""
VOCAB_SIZE = 8_000
MAX_LENGTH = 4_096


def structure_texts() -> Iterator[str]:
    """Yield the texts around titles: their tokens must be whole, as in the pretraining of the layers."""
    yield "Which item completes the bundle?\nBundle:\nOptions:\nAnswer:"
    yield from (f"\n{number}. a" for number in range(1, 31))
    yield from (f"\n{letter}. a {letter}" for letter in string.ascii_uppercase)


def train_tokenizer(titles: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on titles, `VOCAB_SIZE` tokens at most; any text can be encoded, structure is whole."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    titles = [f" {title}" for title in titles]
    repeats = max(100, len(titles))  # more often than any pair within titles, so that structure is merged first
    structure = " \t".join(structure_texts())
    tokenizer.train_from_iterator(chain(titles, repeat(structure, repeats)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, model_max_length=MAX_LENGTH
    )


def scratch_processor(catalog: ItemCatalog) -> BundleMLLMProcessor:
    """Make a processor with the plain wording over a catalog, its tokenizer trained on the titles."""
    tokenizer = train_tokenizer(catalog.titles)
    return BundleMLLMProcessor.from_backbone_tokenizer(tokenizer, catalog.item_ids, catalog.titles)


def scratch_backbone(
    titles: Iterable[str], *, seed: int
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, torch.Tensor]:
    """Make tokenizer and backbone for the titles of a catalog; the seed is that of the new embeddings.

    Returns:
        The backbone in float32, its tokenizer, and the soft separator `[hidden_size]` of its pretraining.
    """
    tokenizer = train_tokenizer(titles)
    with as_file(files("bundle_mllm.training") / "scratch.safetensors") as path, safe_open(path, "pt") as weights:
        metadata = weights.metadata()
        tensors = {name: weights.get_tensor(name).float() for name in weights.keys()}  # noqa: SIM118
    embeddings, head = tensors.pop("embeddings"), tensors.pop("head")
    vocabulary = tokenizer.get_vocab()
    config = LlamaConfig(
        **json.loads(metadata["config"]),
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=vocabulary[PAD],
        bos_token_id=vocabulary[BOS],
        eos_token_id=vocabulary[EOS],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = LlamaForCausalLM(config)
        backbone.model.embed_tokens.weight.data.normal_(std=EMBEDDING_STD)
    missing, unexpected = backbone.model.load_state_dict(tensors, strict=False)
    if unexpected or missing != ["embed_tokens.weight"]:
        raise AssertionError(
            f"scratch.safetensors does not fit LlamaModel: {missing} missing, {unexpected} unexpected"
        )
    vectors = dict(zip(json.loads(metadata["tokens"]), embeddings, strict=True))
    separator = vectors.pop(SEPARATOR)
    for token, vector in vectors.items():
        backbone.model.embed_tokens.weight.data[vocabulary[token]] = vector
    *letters, end, other = head
    backbone.lm_head.weight.data[:] = other
    backbone.lm_head.weight.data[vocabulary[EOS]] = end
    for letter, row in zip(string.ascii_uppercase, letters, strict=True):
        backbone.lm_head.weight.data[vocabulary[f"Ġ{letter}"]] = row
    return backbone, tokenizer, separator
