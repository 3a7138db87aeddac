"""An adapter merged from a checkpoint folder does what PEFT makes of it, and nothing of it is passed over."""

import json

import pytest
import torch
from official_folders import write_lora
from tiny_models import make_backbone
from transformers import GPT2Config, GPT2LMHeadModel

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.interop.lora import merge_lora_checkpoint

IDS = torch.arange(5, 20).unsqueeze(0)


def make_gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=120, n_embd=16, n_layer=1, n_head=2, n_positions=32))


KINDS = {
    "as published": (make_backbone, {}),
    "rank-stabilized": (make_backbone, {"use_rslora": True}),
    "other modules": (make_backbone, {"target_modules": ["mlp.down_proj", "self_attn.o_proj"]}),
    "transposed weights": (make_gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "trained biases": (make_gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"}),
    "DoRA": (make_backbone, {"use_dora": True}),
    "ranks by module": (make_backbone, {"rank_pattern": {"q_proj": 2}}),
    "whole modules": (make_backbone, {"modules_to_save": ["lm_head"]}),
    "some layers": (make_backbone, {"layers_to_transform": [0]}),
}


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_the_merged_backbone_gives_the_logits_of_peft(kind, tmp_path):
    make, config = KINDS[kind]
    adapted = write_lora(tmp_path, make(), **config)
    merged, plain = make().eval(), make().eval()
    merge_lora_checkpoint(merged, tmp_path)
    expected = adapted(input_ids=IDS).logits
    assert not torch.allclose(expected, plain(input_ids=IDS).logits, atol=1e-2), "the adapter does nothing"
    assert torch.allclose(merged(input_ids=IDS).logits, expected, atol=1e-5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    write_lora(folder, make_backbone())
    return folder


BAD_SETTINGS = {
    "another method": ({"peft_type": "IA3"}, "peft_type to 'IA3'"),
    "a changed base": ({"init_lora_weights": "pissa"}, "init_lora_weights to 'pissa'"),
    "layers twice": ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication to"),
    "text for true": ({"use_rslora": "false"}, "use_rslora to 'false'"),
    "a setting of the future": ({"lora_swirl": 2}, "lora_swirl to 2"),
    "no rank": ({"r": None}, "r to None"),
    "a rank of zero": ({"r": 0}, "does not fit the base model .*positive"),
    "alpha that is none": ({"lora_alpha": "16"}, "lora_alpha to '16'"),
    "no modules": ({"target_modules": None}, "target_modules to None"),
    "modules of another model": ({"target_modules": ["c_attn"]}, "does not fit the base model .*c_attn"),
    "another rank": ({"r": 2}, r"lora_A.weight of shape \[4, 32\], but \[2, 32\]"),
    "ranks by module": ({"rank_pattern": {"q_proj": 2}}, r"lora_A.weight of shape \[4, 32\], but \[2, 32\]"),
    "DoRA": ({"use_dora": True}, r"lacks 4 weights \(.*magnitude"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, r"lacks 1 weights \(.*lm_head"),
    "some layers": ({"layers_to_transform": [0]}, r"unknown 4 weights \(.*layers.1"),
    "fewer modules": ({"target_modules": ["q_proj"]}, r"unknown 4 weights \(.*v_proj"),
    "more modules": ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, r"lacks 4 weights \(.*k_proj"),
    "an embedding": ({"target_modules": ["q_proj", "v_proj", "embed_tokens"]}, r"lacks 2 weights \(.*embed_tokens"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_setting_that_cannot_be_honored_is_an_error(checkpoint, tmp_path, name):
    change, message = BAD_SETTINGS[name]
    settings = json.loads((checkpoint / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, **change}))
    (tmp_path / "adapter_model.bin").write_bytes((checkpoint / "adapter_model.bin").read_bytes())
    with pytest.raises(BundleMLLMError, match=message):
        merge_lora_checkpoint(make_backbone(), tmp_path)


def test_an_adapter_on_a_head_that_is_also_the_embedding_is_refused(tmp_path):
    write_lora(tmp_path, make_backbone(), target_modules=["lm_head"])
    with pytest.raises(BundleMLLMError, match=r"shares its weight with another"):
        merge_lora_checkpoint(make_backbone(tie_word_embeddings=True), tmp_path)


def test_settings_that_are_not_json_are_named(checkpoint, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 8')
    with pytest.raises(BundleMLLMError, match=r"adapter_config.json is not JSON"):
        merge_lora_checkpoint(make_backbone(), tmp_path)
