"""Every kind of backbone: build, save, load, score."""

import pytest
import torch
from tiny_models import make_model
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    LlamaModel,
    OPTConfig,
    PhiConfig,
)

from bundle_mllm.modeling import BundleMLLMForCausalLM

OFFSET = 1 << 20
IDS = torch.tensor([[3, 60, 401, OFFSET + 3, 61, 401, OFFSET + 7, 62]])
LETTERS = torch.tensor([40, 41, 42])
COMMON = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
SMALL = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.2}
BACKBONES = {
    "llama": LlamaConfig(**COMMON),
    "llama, tied": LlamaConfig(**COMMON, tie_word_embeddings=True),
    "gpt2": GPT2Config(**SMALL),
    "gpt_neox": GPTNeoXConfig(**COMMON),
    "phi": PhiConfig(**COMMON),
    "gemma2": Gemma2Config(**COMMON, head_dim=16, final_logit_softcapping=2.0),
    "gemma3": Gemma3TextConfig(**COMMON, head_dim=16),
    "granite": GraniteConfig(**COMMON, logits_scaling=8.0, embedding_multiplier=3.0),
    "cohere": CohereConfig(**COMMON, logit_scale=0.25),
    "opt": OPTConfig(
        vocab_size=300, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16
    ),
    "bloom": BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=2, initializer_range=0.2),
}


def make_backbone(config):
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in backbone.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    return backbone


@pytest.fixture(params=BACKBONES.values(), ids=list(BACKBONES))
def backbone(request):
    return make_backbone(request.param)


@torch.no_grad()
def test_a_backbone_is_wrapped_saved_loaded_and_scored(backbone, tmp_path):
    text = torch.tensor([[3, 60, 61, 62]])
    expected_text = backbone(input_ids=text).logits
    model = make_model(backbone)
    assert torch.equal(model(input_ids=text).logits, expected_text)

    logits = model(input_ids=IDS).logits
    scores = model.option_logits(IDS, torch.ones_like(IDS), LETTERS)
    assert torch.allclose(scores, logits[:, -1, LETTERS], atol=1e-5)
    padded, mask = torch.zeros(1, 12, dtype=torch.long), torch.zeros(1, 12, dtype=torch.long)
    padded[:, 4:], mask[:, 4:] = IDS, 1
    assert torch.allclose(model.option_logits(padded, mask, LETTERS), scores, atol=1e-5)

    model.save_pretrained(tmp_path)
    loaded = BundleMLLMForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(input_ids=IDS).logits, logits)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    tied = model.config.tie_word_embeddings
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) is tied


@torch.no_grad()
def test_half_precision_backbones_score(tmp_path):
    backbone = AutoModelForCausalLM.from_config(LlamaConfig(**COMMON), dtype=torch.bfloat16)
    model = make_model(backbone)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    logits = model(input_ids=IDS).logits
    model.save_pretrained(tmp_path)
    loaded = BundleMLLMForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16 and torch.equal(loaded(input_ids=IDS).logits, logits)


def test_a_backbone_that_reads_input_ids_in_every_layer_is_refused():
    config = Gemma3nTextConfig(
        **{**COMMON, "num_hidden_layers": 5}, head_dim=16, vocab_size_per_layer_input=300, num_kv_shared_layers=0,
        hidden_size_per_layer_input=8, laurel_rank=4, layer_types=["full_attention"] * 5,
    )  # fmt: skip
    with pytest.raises(ValueError, match="'gemma3n_text' embeds input_ids again"):
        make_model(AutoModelForCausalLM.from_config(config))


def test_a_model_that_is_no_causal_language_model_is_refused():
    with pytest.raises(ValueError, match="LlamaModel is no causal language model"):
        make_model(LlamaModel(LlamaConfig(**COMMON)))


def test_a_head_that_does_more_than_a_linear_map_is_refused():
    config = BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        is_decoder=True,
    )
    with pytest.raises(ValueError, match="BertLMHeadModel"):
        make_model(BertLMHeadModel(config))
