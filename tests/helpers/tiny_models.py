"""A tiny tokenizer, backbone, ranker, retriever and processor, built in the test: nothing is downloaded."""

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bundle_mllm.interop.backbone import wrap_backbone
from bundle_mllm.modeling import (
    BundleCompleter,
    BundleItemProcessor,
    BundleMLLMForCausalLM,
    BundleMLLMProcessor,
    BundleRetriever,
    BundleRetrieverConfig,
)
from bundle_mllm.modeling.groups_bundle_mllm import ItemPairs

SENTENCES = [
    "Which item completes the bundle?",
    "Bundle: 1. red linen shirt 2. blue jeans 3. white sneakers",
    "Options: A. green hat B. black leather belt C. wool coat",
    "Answer: A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
]
ITEM_IDS = [f"i{row}" for row in range(8)]
TITLES = ["red shirt", "blue jeans", "white sneakers", "green hat", "black belt", "", "wool coat", "linen shirt"]
NUM_ITEMS = len(ITEM_IDS)
MODALITIES = {"visual": 12, "user_item": 6}
GROUPS = {"textual": [[0, 7], [1, 2, 5]], "user_item": [[0, 1, 2], [2, 3], [4, 7, 0]]}
"""Rows of the items of each group, by membership."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_sentencepiece_tokenizer(legacy):
    """Like Llama 2 (`legacy`: a normalizer writes the spaces) or Gemma and Mistral (a pre-tokenizer does)."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    pieces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(pieces)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    backend.train_from_iterator(SENTENCES * 3, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def make_wordpiece_tokenizer(lowercase):
    """Like BERT's vocabularies: words are split at spaces and punctuation, which are then forgotten."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[EOS]"]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    backend.train_from_iterator(SENTENCES * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]")


def make_unigram_tokenizer():
    """Like T5's and XLNet's vocabularies, with an end token that it does not append."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<pad>", "<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(SENTENCES * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")


def make_tokenizer(adds_bos=True, chat_template=None, **kwargs):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SENTENCES * 3, trainer)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=chat_template,
        **kwargs,
    )


def make_backbone(**kwargs):
    torch.manual_seed(0)
    config = LlamaConfig(
        **{
            "vocab_size": 420,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.2,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **kwargs,
        }
    )
    return LlamaForCausalLM(config)


def make_features(seed=0, num_items=NUM_ITEMS, modalities=None):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(num_items, width, generator=generator) for name, width in (modalities or MODALITIES).items()
    }


def make_model(backbone=None, features=None, present=None, **config):
    torch.manual_seed(1)
    config = {"modalities": MODALITIES, "separator_token_id": 401, **config}
    model = BundleMLLMForCausalLM.from_backbone(backbone or make_backbone(), **config)
    model.set_catalog(features or make_features(modalities=config["modalities"]), present)
    return model


def make_processor(tokenizer=None, **fields):
    fields = {"modalities": MODALITIES, **fields}
    return BundleMLLMProcessor.from_backbone_tokenizer(tokenizer or make_tokenizer(), ITEM_IDS, TITLES, **fields)


def make_pairs(groups, **fields):
    """Item-group pairs of groups that are given by their rows."""
    pairs = [(row, number) for number, rows in enumerate(groups) for row in rows]
    nodes, numbers = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    return ItemPairs(nodes, numbers, **fields)


def make_retriever(features=None, present=None, groups=None, modalities=None, **config):
    """A retriever whose parameters are all random, so that every part of its formula counts."""
    modalities = MODALITIES if modalities is None else modalities
    groups = GROUPS if groups is None else groups
    memberships = dict.fromkeys(groups, 0)
    config = BundleRetrieverConfig(modalities=modalities, memberships=memberships, hidden_size=8, **config)
    model, generator = BundleRetriever(config), torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    features = make_features(modalities=modalities) if features is None else features
    pairs = {name: make_pairs(rows) for name, rows in groups.items()}
    model.set_catalog(features, present, pairs, fit_statistics=True)
    return model.eval()


def make_item_processor():
    return BundleItemProcessor(ITEM_IDS, TITLES, MODALITIES)


def make_completer(ranker=True, retriever=True, combination=None, **config):
    """A completer of one or both models; `config` is of the retriever."""
    processor = make_processor() if ranker else make_item_processor()
    return BundleCompleter(
        processor,
        make_model(separator_token_id=processor.separator_token_id) if ranker else None,
        make_retriever(**config) if retriever else None,
        combination,
    )


def make_completer_for(data, ranker=True, retriever=True):
    """An untrained completer over the catalog of a dataset folder; the retriever compares items by their titles."""
    catalog, (features, present) = data.catalog, data.features().load()
    modalities = {name: matrix.shape[1] for name, matrix in features.items()}
    processor = BundleItemProcessor(catalog.item_ids, catalog.titles, modalities)
    models = {}
    if ranker:
        backbone = make_backbone(max_position_embeddings=2048)
        models["ranker"], processor = wrap_backbone(backbone, make_tokenizer(), catalog, modalities)
        models["ranker"].set_catalog(features, present)
    if retriever:
        words = sorted({word for title in catalog.titles for word in title.split()})
        groups = [[row for row, title in enumerate(catalog.titles) if word in title.split()] for word in words]
        models["retriever"] = make_retriever(features, present, {"textual": groups}, modalities)
    return BundleCompleter(processor, **models)
