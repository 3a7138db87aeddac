"""An exported folder is a stock model: no remote code, the same tokens, the same scores, the same free answers."""

import json
import shutil

import pytest
import torch
from tiny_models import (
    CHAT_TEMPLATE,
    ITEM_IDS,
    MODALITIES,
    make_model,
    make_processor,
    make_retriever,
    make_sentencepiece_tokenizer,
    make_tokenizer,
)
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.interop import export
from bundle_mllm.interop.export import export_stock
from bundle_mllm.model_folder import load_ranker, save_model
from bundle_mllm.modeling import BundleCompleter, BundleMLLMProcessor
from bundle_mllm.training.config import LoraSettings
from bundle_mllm.training.trainable import make_trainable

QUESTIONS = [
    {"partial": ["i0", "i5", "i1"], "candidates": ["i2", "i3", "i4", "i7"]},
    {"partial": ["i6"], "candidates": ["i5", "i0", "i2"]},
]
TEXT_TOKENS = 374  # of the tokenizer below, placeholder and separator included
INSIDE, OUTSIDE = 420, 372  # vocabularies with and without room for placeholder, separator and items
COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
BACKBONES = {
    "LlamaForCausalLM": LlamaConfig(vocab_size=OUTSIDE, **COMMON),
    "Qwen2ForCausalLM": Qwen2Config(vocab_size=INSIDE, **COMMON, tie_word_embeddings=True),
    "Gemma3ForCausalLM": Gemma3TextConfig(vocab_size=OUTSIDE, **COMMON, head_dim=16),
    "GPT2LMHeadModel": GPT2Config(vocab_size=OUTSIDE, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2),
    "GPTNeoXForCausalLM": GPTNeoXConfig(vocab_size=INSIDE, **COMMON),
    "PhiForCausalLM": PhiConfig(vocab_size=OUTSIDE, **COMMON),
    "GraniteForCausalLM": GraniteConfig(vocab_size=INSIDE, **COMMON, logits_scaling=8.0, embedding_multiplier=3.0),
    "OPTForCausalLM": OPTConfig(
        vocab_size=OUTSIDE, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=16, max_position_embeddings=512, pad_token_id=0, eos_token_id=2,
    ),
    "MixtralForCausalLM": MixtralConfig(vocab_size=INSIDE, **COMMON, num_local_experts=4),
}  # fmt: skip


def make_backbone(config, dtype=None):
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for name, parameter in backbone.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    return backbone


def save(folder, config=BACKBONES["LlamaForCausalLM"], tokenizer=None, dtype=None, **fields):
    processor = make_processor(tokenizer, **fields)
    model = make_model(make_backbone(config, dtype), separator_token_id=processor.separator_token_id)
    save_model(model, processor, folder)
    return model, processor


def load_stock(folder):
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def logits_of(stock, tokenizer, prompt):
    return stock(**tokenizer([prompt], return_tensors="pt")).logits[0, -1]


@torch.no_grad()
def own_logits(model, processor, question):
    return model.last_logits(**processor(question, return_tensors="pt"))[0]


def chat_ids(tokenizer, message):
    messages = [{"role": "user", "content": message}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def stock_ids(processor, tokenizer, question):
    """The prompt's ids with items where the stock tokenizer has them."""
    offset, first = processor.tokenizer.item_token_offset, tokenizer.convert_tokens_to_ids("<|item_0|>")
    ids = processor(question)["input_ids"][0]
    return [token_id if token_id < offset else token_id - offset + first for token_id in ids]


def client_message(folder, question):
    """What a client writes that has the folder's two files only."""
    record = json.loads((folder / "bundle_mllm_export.json").read_text(encoding="utf-8"))
    lines = (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()
    items = {line["item_id"]: line["text"] for line in map(json.loads, lines)}
    return export.compose_message(record, items, **question)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    model, processor = save(folder / "model")
    return model, processor, folder / "model", export_stock(folder / "model", folder / "stock")


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_is_exported_with_the_same_scores(name, tmp_path):
    model, processor = save(tmp_path / "model", BACKBONES[name])
    stock, tokenizer = load_stock(export_stock(tmp_path / "model", tmp_path / "stock"))
    assert type(stock).__name__ == name and not stock.config.tie_word_embeddings
    assert stock.get_output_embeddings().weight is not stock.get_input_embeddings().weight
    rows = max(BACKBONES[name].vocab_size, TEXT_TOKENS + len(ITEM_IDS))
    assert stock.config.vocab_size == rows == len(stock.get_input_embeddings().weight)
    for question in QUESTIONS:
        prompt = processor.render(question)
        ours, theirs = own_logits(model, processor, question), logits_of(stock, tokenizer, prompt)
        assert tokenizer(prompt)["input_ids"] == stock_ids(processor, tokenizer, question)
        assert (ours - theirs[: len(ours)])[:OUTSIDE].abs().max() < 1e-5
        assert theirs.argmax() == ours.argmax()


def test_nothing_in_the_folder_needs_this_package(exported):
    *_, folder = exported
    assert not list(folder.glob("*.py"))
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["model_type"] == "llama" and config["architectures"] == ["LlamaForCausalLM"]
    assert not {"auto_map", "custom_pipelines"} & (config.keys() | tokenizer.keys())
    assert type(AutoTokenizer.from_pretrained(folder)) is PreTrainedTokenizerFast
    assert not [path.name for path in folder.glob("*.json*") if str(folder.parent) in path.read_text()]


def test_item_and_separator_tokens_are_special(exported):
    _, processor, _, folder = exported
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = processor.item_text("i3")
    assert text == "green hat<|item_separator|><|item_3|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids[-2:] == [processor.separator_token_id, TEXT_TOKENS + 3]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "green hat"


def test_a_plain_message_becomes_the_prompt(exported):
    _, processor, _, folder = exported
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for question in QUESTIONS:
        message = client_message(folder, question)
        assert message == processor.render(question)
        ids = chat_ids(tokenizer, message)
        assert ids == stock_ids(processor, tokenizer, question) and ids.count(tokenizer.bos_token_id) == 1
        assert chat_ids(tokenizer, [{"type": "text", "text": message}]) == ids


INST = "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}\n"
TOKENIZERS = {
    "byte-level": lambda: make_tokenizer(chat_template=CHAT_TEMPLATE),
    "byte-level, template without bos": lambda: make_tokenizer(
        chat_template=CHAT_TEMPLATE.removeprefix("{{ bos_token }}")
    ),
    "byte-level, no bos": lambda: make_tokenizer(adds_bos=False, chat_template=CHAT_TEMPLATE),
    "metaspace": lambda: make_sentencepiece_tokenizer(legacy=False),
    "metaspace, chat": lambda: _with_template(make_sentencepiece_tokenizer(legacy=False), INST),
    "metaspace, legacy": lambda: make_sentencepiece_tokenizer(legacy=True),
    "metaspace, legacy, chat": lambda: _with_template(make_sentencepiece_tokenizer(legacy=True), INST),
}


def _with_template(tokenizer, template):
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=list(TOKENIZERS))
def test_a_message_becomes_the_prompt_with_every_kind_of_tokenizer(make, tmp_path):
    config = LlamaConfig(vocab_size=440, **COMMON)
    wording = {"answer_cue": 'Say "{letter}":', "instruction": "Which {item_noun} {{fits}}?"}
    _, processor = save(tmp_path / "model", config, make(), **wording)
    folder = export_stock(tmp_path / "model", tmp_path / "stock")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for question in QUESTIONS:
        expected = stock_ids(processor, tokenizer, question)
        assert tokenizer(processor.render(question))["input_ids"] == expected
        assert chat_ids(tokenizer, client_message(folder, question)) == expected


def test_a_chat_tokenizer_may_be_asked_plainly(tmp_path):
    _, processor = save(
        tmp_path / "model", tokenizer=make_tokenizer(chat_template=CHAT_TEMPLATE), conversational=False
    )
    tokenizer = AutoTokenizer.from_pretrained(export_stock(tmp_path / "model", tmp_path / "stock"))
    expected = stock_ids(processor, tokenizer, QUESTIONS[0])
    assert chat_ids(tokenizer, processor.render(QUESTIONS[0])) == expected


def test_a_client_finds_letters_and_limits(exported):
    _, processor, source, folder = exported
    record = json.loads((folder / "bundle_mllm_export.json").read_text())
    assert (
        record["left_behind"] == [] and record["source"] == source.name and record["modalities"] == sorted(MODALITIES)
    )
    assert record["num_items"] == len(ITEM_IDS) and record["first_item_token_id"] == TEXT_TOKENS
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = processor.render(QUESTIONS[0])
    for index, letter in enumerate(record["letters"].values()):
        assert letter["token_id"] == processor.answer_token_ids(26)[index]
        assert tokenizer(prompt + letter["text"])["input_ids"] == [*tokenizer(prompt)["input_ids"], letter["token_id"]]
    assert len(record["letters"]) == 26


@torch.no_grad()
def test_items_never_win_a_free_choice(tmp_path):
    """Every logit of this model is negative, so items with rows of zeros in the head would be its every answer."""
    processor = make_processor()
    backbone = make_backbone(BACKBONES["GPTNeoXForCausalLM"])
    letters = processor.answer_token_ids(26)
    last, head = backbone.base_model.final_layer_norm, backbone.get_output_embeddings()
    last.weight.mul_(0.1)
    last.bias.fill_(1.0)
    head.weight.mul_(0.5)
    head.weight.sub_(head.weight.mean(dim=1, keepdim=True) + 0.5)
    head.weight[letters] += 0.25
    model = make_model(backbone, separator_token_id=processor.separator_token_id)
    save_model(model, processor, tmp_path / "model")
    stock, tokenizer = load_stock(export_stock(tmp_path / "model", tmp_path / "stock"))
    for question in QUESTIONS:
        prompt = tokenizer([processor.render(question)], return_tensors="pt")
        assert stock(**prompt).logits[0, -1].max() < 0
        [answer] = stock.generate(**prompt, max_new_tokens=1, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert answer in letters and answer == own_logits(model, processor, question).argmax()


@torch.no_grad()
def test_modalities_that_are_not_named_count_as_absent(exported, tmp_path):
    model, _, source, full = exported
    folder = export_stock(source, tmp_path / "stock", modalities=["visual"])
    rows = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight[TEXT_TOKENS:]
    catalog, _ = load_ranker(source)
    catalog.model.catalog.present[:, list(MODALITIES).index("visual") ^ 1] = False
    present = {"visual": torch.ones(len(ITEM_IDS), dtype=torch.bool)}
    features = {"visual": model.model.catalog.features["visual"]}
    catalog.set_catalog(features, present)
    assert torch.allclose(rows, catalog.get_item_embeddings(torch.arange(len(ITEM_IDS))), atol=1e-6)
    all_rows = AutoModelForCausalLM.from_pretrained(full).get_input_embeddings().weight[TEXT_TOKENS:]
    assert torch.allclose(all_rows, model.get_item_embeddings(torch.arange(len(ITEM_IDS))), atol=1e-6)
    assert not torch.allclose(rows, all_rows, atol=1e-2)
    assert json.loads((folder / "bundle_mllm_export.json").read_text())["modalities"] == ["visual"]


@pytest.mark.parametrize(
    ("modalities", "message"), [(["visual", "smell"], "no modalities 'smell'"), ([], "one and the same token")]
)
def test_unusable_modalities_are_refused(exported, tmp_path, modalities, message):
    with pytest.raises(BundleMLLMError, match=message):
        export_stock(exported[2], tmp_path / "stock", modalities=modalities)
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_an_adapter_is_merged_with_all_it_holds(tmp_path):
    save(tmp_path / "base")
    model, processor = load_ranker(tmp_path / "base")
    adapted = make_trainable(model, ["lora", "fusion", "projector", "separator"], LoraSettings(), seed=0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.eval().save_pretrained(tmp_path / "adapter")
    stock, tokenizer = load_stock(export_stock(tmp_path / "adapter", tmp_path / "stock"))
    ours = own_logits(adapted, processor, QUESTIONS[0])
    assert (ours - logits_of(stock, tokenizer, processor.render(QUESTIONS[0]))[: len(ours)]).abs().max() < 1e-5

    BundleMLLMProcessor(processor.tokenizer, ITEM_IDS, ITEM_IDS).save_pretrained(tmp_path / "adapter")
    with pytest.raises(BundleMLLMError, match="does not hold the items"):
        export_stock(tmp_path / "adapter", tmp_path / "other")
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(BundleMLLMError, match="There is no folder"):
        export_stock(tmp_path / "adapter", tmp_path / "other")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(BundleMLLMError, match="does not name what it adapts"):
        export_stock(tmp_path / "adapter", tmp_path / "other")


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Gemma3ForCausalLM"])
def test_half_precision_stays_half_precision(name, tmp_path):
    model, processor = save(tmp_path / "model", BACKBONES[name], dtype=torch.bfloat16)
    stock, tokenizer = load_stock(export_stock(tmp_path / "model", tmp_path / "stock"))
    assert stock.dtype == torch.bfloat16
    ours = own_logits(model, processor, QUESTIONS[0])
    difference = ours - logits_of(stock, tokenizer, processor.render(QUESTIONS[0]))[: len(ours)]
    assert difference.abs().max() < 0.05 * ours.abs().max()


def test_the_generation_settings_are_kept(tmp_path):
    model, processor = save(tmp_path / "model")
    model.generation_config.eos_token_id, model.generation_config.repetition_penalty = [2, 4], 1.5
    save_model(model, processor, tmp_path / "model")
    stock, _ = load_stock(export_stock(tmp_path / "model", tmp_path / "stock"))
    assert stock.generation_config.eos_token_id == [2, 4] and stock.generation_config.repetition_penalty == 1.5


def test_a_model_of_titles_alone_is_exported(tmp_path):
    processor = make_processor(show_items=False, modalities=None)
    model = make_model(make_backbone(BACKBONES["LlamaForCausalLM"]), separator_token_id=processor.separator_token_id)
    model.set_catalog({name: torch.zeros(0, width) for name, width in MODALITIES.items()})
    save_model(model, processor, tmp_path / "model")
    folder = export_stock(tmp_path / "model", tmp_path / "stock")
    assert client_message(folder, QUESTIONS[0]) == processor.render(QUESTIONS[0])
    stock, tokenizer = load_stock(folder)
    assert len(tokenizer) == TEXT_TOKENS
    ours = own_logits(model, processor, QUESTIONS[0])
    assert (ours - logits_of(stock, tokenizer, processor.render(QUESTIONS[0]))[: len(ours)]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), r"weights model.fusion.key.weight of .* not finite"), (3e38, "scores of .*")]
)
def test_a_model_that_answers_nothing_is_refused(tmp_path, value, message):
    model, processor = save(tmp_path / "model")
    weight = model.model.fusion.key.weight if value != value else model.lm_head.weight
    torch.nn.init.constant_(weight, value)
    save_model(model, processor, tmp_path / "model")
    with pytest.raises(BundleMLLMError, match=message):
        export_stock(tmp_path / "model", tmp_path / "stock")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_output_folder_in_use_is_refused(exported, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(BundleMLLMError, match="not empty"):
        export_stock(exported[2], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_missing_model_is_an_error(tmp_path):
    with pytest.raises(BundleMLLMError, match="There is no folder"):
        export_stock(tmp_path / "nowhere", tmp_path / "stock")
    assert not list(tmp_path.iterdir())


def test_parts_of_two_models_are_refused(exported, tmp_path):
    _, processor, source, _ = exported
    shutil.copytree(source, tmp_path / "model")
    for ids, message in ((ITEM_IDS[:3], "has 3 items and .* 8"), (ITEM_IDS[::-1], "does not hold the items")):
        processor.__class__(processor.tokenizer, ids, ids).save_pretrained(tmp_path / "model")
        with pytest.raises(BundleMLLMError, match=message):
            export_stock(tmp_path / "model", tmp_path / "stock")
    make_processor(make_sentencepiece_tokenizer(legacy=True)).save_pretrained(tmp_path / "model")
    with pytest.raises(BundleMLLMError, match="separator_token_id is 373 in the model"):
        export_stock(tmp_path / "model", tmp_path / "stock")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_that_scores_differently_never_appears(exported, tmp_path, monkeypatch):
    fold = export._fold

    def wrong(*args):
        stock = fold(*args)
        stock.get_input_embeddings().weight[TEXT_TOKENS:] += 0.1
        return stock

    monkeypatch.setattr(export, "_fold", wrong)
    with pytest.raises(BundleMLLMError, match="scores letters differently"):
        export_stock(exported[2], tmp_path / "stock")
    assert not list(tmp_path.iterdir())


def test_an_embedding_that_does_more_than_scale_is_refused():
    class Shifted(nn.Embedding):
        def forward(self, ids):
            return super().forward(ids) + 1.0

    with pytest.raises(BundleMLLMError, match="Shifted does more than scale"):
        export._embedding_scale(Shifted(20, 8))


def test_a_retriever_is_left_behind_and_named(exported, tmp_path):
    model, processor, *_ = exported
    BundleCompleter(processor, model, make_retriever(groups={"textual": [[0, 1, 2], [5, 6]]})).save_pretrained(
        tmp_path / "model"
    )
    folder = export_stock(tmp_path / "model", tmp_path / "stock")
    assert json.loads((folder / "bundle_mllm_export.json").read_text())["left_behind"] == ["retriever"]
    assert not (folder / "retriever").exists()


def test_a_very_large_catalog_is_warned_about(exported, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(export, "MANY_ITEMS", 7)
    monkeypatch.setattr(export.logger, "warning", warnings.append)
    export_stock(exported[2], tmp_path / "stock")
    assert "8 items become added tokens" in warnings[0]
