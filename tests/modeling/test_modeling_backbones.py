"""Every kind of backbone: build, save, load, score."""

import pytest
import torch
from tiny_models import make_model, make_tokenizer
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    BitsAndBytesConfig,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from bundle_mllm.modeling import BundleMLLMForCausalLM
from bundle_mllm.modeling.prefix_bundle_mllm import last_logits
from bundle_mllm.training.config import LoraSettings, StageOneConfig, StageTwoConfig
from bundle_mllm.training.trainable import make_trainable, merge_lora

OFFSET = 1 << 20
IDS = torch.tensor([[3, 60, 401, OFFSET + 3, 61, 401, OFFSET + 7, 62]])
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
    "mistral": MistralConfig(**COMMON, sliding_window=16),
    "qwen2": Qwen2Config(**COMMON, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**COMMON, head_dim=16),
    "smollm3": SmolLM3Config(**COMMON, pad_token_id=0),
    "olmo2": Olmo2Config(**COMMON),
    "gpt2": GPT2Config(**SMALL),
    "gpt_neox": GPTNeoXConfig(**COMMON),
    "falcon": FalconConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2),
    "phi": PhiConfig(**COMMON),
    "phi3": Phi3Config(**COMMON, pad_token_id=0),
    "gemma2": Gemma2Config(**COMMON, head_dim=16, final_logit_softcapping=2.0),
    "gemma3": Gemma3TextConfig(**COMMON, head_dim=16),
    "granite": GraniteConfig(**COMMON, logits_scaling=8.0, embedding_multiplier=3.0),
    "cohere": CohereConfig(**COMMON, logit_scale=0.25),
    "opt": OPTConfig(
        vocab_size=300, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16
    ),
    "mixtral": MixtralConfig(**COMMON, num_local_experts=2),
    "qwen3_moe": Qwen3MoeConfig(**COMMON, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
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
    assert_close(model(input_ids=text).logits, expected_text)

    logits = model(input_ids=IDS).logits
    scores = model.last_logits(IDS, torch.ones_like(IDS))
    assert torch.allclose(scores, logits[:, -1], atol=1e-5)
    padded, mask = torch.zeros(1, 12, dtype=torch.long), torch.zeros(1, 12, dtype=torch.long)
    padded[:, 4:], mask[:, 4:] = IDS, 1
    assert torch.allclose(model.last_logits(padded, mask), scores, atol=1e-5)

    model.save_pretrained(tmp_path)
    loaded = BundleMLLMForCausalLM.from_pretrained(tmp_path)
    assert_close(loaded(input_ids=IDS).logits, logits)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    tied = model.config.tie_word_embeddings
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) is tied


def step(model, ids):
    """Take one short step down the gradient of the answer's loss; return the loss before and after."""
    labels = torch.full_like(ids, -100)
    labels[0, -1] = 41
    question = ids.masked_fill(labels != -100, 41)
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = model(input_ids=question, labels=labels).loss
    before.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 0.01)
    torch.optim.SGD(parameters, lr=1.0).step()
    model.zero_grad()
    return before.item(), model(input_ids=question, labels=labels).loss.item()


def test_a_step_of_each_stage_lowers_the_loss_and_moves_its_groups_only(backbone):
    model = make_model(backbone)
    for stage in (StageOneConfig(), StageTwoConfig()):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        trained = make_trainable(model, stage.trains, LoraSettings(dropout=0.0), seed=0)
        first, second = step(trained, IDS if stage.shows_items else IDS.clamp(max=299))
        assert second < first
        model = merge_lora(trained)
        moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        if stage.shows_items:
            assert {name.split(".")[1] for name in moved} == {"fusion", "projector", "separator"}
        else:
            assert moved and all("language_model" in name and "weight" in name for name in moved)
            assert not any("embed" in name or "wte" in name for name in moved)


@torch.no_grad()
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_prompts_that_begin_alike_have_the_logits_of_each_by_itself(backbone, padding_side):
    model, tokenizer = make_model(backbone), make_tokenizer(padding_side=padding_side)
    prompts = [IDS[0].tolist() + ending for ending in ([60, 61], [62], [60, 64, 65], [66], [67, 68])]
    expected = torch.cat([model.last_logits(torch.tensor([prompt])) for prompt in prompts])
    assert_close(last_logits(model, tokenizer, prompts), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_generation_with_a_cache_reads_items(backbone):
    model = make_model(backbone)
    generated = model.generate(IDS, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    for length in range(IDS.shape[1], generated.shape[1]):
        logits = model(input_ids=generated[:, :length], use_cache=False).logits[0, -1]
        assert torch.isclose(logits[generated[0, length]], logits.max(), atol=1e-4)


@torch.no_grad()
def test_half_precision_backbones_score(tmp_path):
    backbone = AutoModelForCausalLM.from_config(LlamaConfig(**COMMON), dtype=torch.bfloat16)
    model = make_model(backbone)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    logits = model(input_ids=IDS).logits
    model.save_pretrained(tmp_path)
    loaded = BundleMLLMForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert_close(loaded(input_ids=IDS).logits, logits)


@torch.no_grad()
def test_a_saved_model_loads_in_four_bits_with_its_item_modules_whole(tmp_path):
    pytest.importorskip("bitsandbytes")
    model = make_model(make_backbone(LlamaConfig(**{**COMMON, "hidden_size": 64, "intermediate_size": 128})))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    )
    quantized = {name for name, module in loaded.named_modules() if type(module).__name__ == "Linear4bit"}
    assert quantized and all(name.startswith("model.language_model.layers.") for name in quantized)
    rows = torch.arange(4)
    assert_close(loaded.get_item_embeddings(rows), model.get_item_embeddings(rows))
    expected, found = model.last_logits(IDS), loaded.last_logits(IDS)
    assert 0 < (found - expected).abs().max() < 0.5 * expected.abs().max() + 1


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
